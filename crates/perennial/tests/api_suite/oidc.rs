//! Signing in with a real OpenID provider, and who tries to get in beside it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use perennial::config::OidcSection;
use perennial::oidc::Provider;
use perennial::store::Store;
use perennial_core::fault::NoTap;
use reqwest::Url;
use serde_json::json;

use crate::server::{Answer, Server, read};

const BEGIN: &str = "/api/v1/sessions/oidc";
const CALLBACK: &str = "https://perennial.example/api/v1/sessions/oidc/callback";

/// A provider that is stopped with this value.
struct Issuer {
    script: PathBuf,
    directory: PathBuf,
    url: String,
    _parent: tempfile::TempDir,
}

impl Issuer {
    fn start() -> Option<Self> {
        let variable = "PERENNIAL_TEST_OIDC_SCRIPT";
        let Some(script) = std::env::var_os(variable).filter(|script| !script.is_empty()).map(PathBuf::from) else {
            assert!(std::env::var_os("PERENNIAL_TEST_REQUIRE").is_none(), "{variable} is not set: ./dev env");
            return None;
        };
        let parent = tempfile::Builder::new().prefix("oidc-").tempdir().unwrap();
        let directory = parent.path().join("provider");
        let mut issuer = Self { script, directory, url: String::new(), _parent: parent };
        issuer.url = issuer.run("start");
        Some(issuer)
    }

    fn run(&self, what: &str) -> String {
        let output = Command::new(&self.script).arg(what).arg(&self.directory).output().unwrap();
        assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.run("stop");
    }
}

/// Somebody's browser, at the provider: keeps cookies by name.
struct Browser {
    client: reqwest::Client,
    cookies: BTreeMap<String, String>,
}

impl Browser {
    fn new() -> Self {
        perennial::crypto::install();
        let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).no_proxy();
        Self { client: client.build().unwrap(), cookies: BTreeMap::new() }
    }

    async fn ask(&mut self, request: reqwest::RequestBuilder) -> reqwest::Response {
        let cookies: Vec<String> = self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let answer = request.header("cookie", cookies.join("; ")).send().await.unwrap();
        for set in answer.headers().get_all("set-cookie") {
            let (name, value) = set.to_str().unwrap().split(';').next().unwrap().split_once('=').unwrap();
            self.cookies.insert(name.to_owned(), value.to_owned());
        }
        answer
    }

    /// Signs in at the provider as somebody, and consents: the address that the browser is sent back to.
    async fn sign_in(&mut self, url: &str, account: &str) -> Url {
        let mut at = Url::parse(url).unwrap();
        for _ in 0..20 {
            let mut answer = self.ask(self.client.get(at.clone())).await;
            if answer.status() == StatusCode::OK {
                // A form of the provider's: who one is, then what this server may know.
                let page = answer.text().await.unwrap();
                let prompt = if page.contains("name=\"login\"") { "login" } else { "consent" };
                let form = format!("prompt={prompt}&login={account}&password=any");
                let form =
                    self.client.post(at.clone()).header("content-type", "application/x-www-form-urlencoded").body(form);
                answer = self.ask(form).await;
            }
            let location = answer.headers().get("location");
            let location = location.unwrap_or_else(|| panic!("{at}: {}", answer.status())).to_str().unwrap();
            at = at.join(location).unwrap();
            if at.as_str().starts_with(CALLBACK) {
                return at;
            }
        }
        panic!("the provider sends people in circles");
    }
}

fn section(issuer: &Issuer) -> OidcSection {
    OidcSection {
        issuer: Some(issuer.url.clone()),
        client_id: Some("perennial-public".to_owned()),
        client_secret_file: None,
        public_url: Some("https://perennial.example".to_owned()),
    }
}

async fn trusting(section: &OidcSection) -> Server {
    let store = Store::open("sqlite::memory:", Arc::new(NoTap)).await.unwrap();
    let server = Server::vouched_by(store, Provider::new(section).unwrap()).await;
    server.user("ann", "user", &["acme"]).await;
    let set = server.patch("/api/v1/users/ann", None, json!({"email": "Ann@Example.org"})).await;
    assert_eq!(set.status, StatusCode::OK, "{set:?}");
    server
}

async fn get(server: &Server, path: &str, cookie: Option<&str>) -> Answer {
    let mut request = Request::builder().uri(path).header("host", "perennial.example");
    if let Some(cookie) = cookie {
        request = request.header("cookie", cookie);
    }
    read(server.send(request.body(Body::empty()).unwrap()).await).await
}

fn cookies(answer: &Answer) -> Vec<String> {
    let all = answer.headers.get_all("set-cookie").iter();
    all.map(|set| set.to_str().unwrap().split(';').next().unwrap().to_owned()).collect()
}

/// Where a browser is sent, and what it keeps.
async fn begun(server: &Server) -> (String, String) {
    let begun = get(server, &format!("{BEGIN}?returnTo=/docs%3Fa%3Db"), None).await;
    assert_eq!(begun.status, StatusCode::SEE_OTHER, "{begun:?}");
    let set = begun.headers["set-cookie"].to_str().unwrap();
    for attribute in ["HttpOnly", "Secure", "SameSite=Lax", "Path=/", "Max-Age=600"] {
        assert!(set.split("; ").any(|one| one == attribute), "{attribute}: {set}");
    }
    (begun.headers["location"].to_str().unwrap().to_owned(), cookies(&begun).remove(0))
}

fn path(url: &Url) -> String {
    format!("{}?{}", url.path(), url.query().unwrap_or_default())
}

/// The whole way: begin, the provider, back again.
async fn signed_in(server: &Server, account: &str) -> Answer {
    let (url, kept) = begun(server).await;
    let back = Browser::new().sign_in(&url, account).await;
    get(server, &path(&back), Some(&kept)).await
}

#[tokio::test]
async fn whom_the_provider_vouches_for_signs_in_and_stays_who_they_are() {
    let Some(issuer) = Issuer::start() else { return };
    let server = trusting(&section(&issuer)).await;
    let answer = signed_in(&server, "ann").await;
    assert_eq!(
        (answer.status, &answer.headers["location"]),
        (StatusCode::SEE_OTHER, &"/docs?a=b".parse().unwrap()),
        "{answer:?}"
    );
    assert_eq!(
        (&answer.headers["cache-control"], &answer.headers["referrer-policy"]),
        (&"no-store".parse().unwrap(), &"no-referrer".parse().unwrap())
    );
    let set = cookies(&answer);
    assert_eq!((set.len(), set[1].as_str()), (2, "__Host-perennial_oidc="), "{set:?}");
    let me = get(&server, "/api/v1/me", Some(&set[0])).await;
    assert_eq!(me.json()["user"], "ann", "{me:?}");

    // Somebody else who got the address at the provider is not ann, and ann still is, whatever address the provider has by now.
    let other = signed_in(&server, "ann-again").await;
    assert_eq!(other.status, StatusCode::UNAUTHORIZED, "{other:?}");
    assert_eq!(signed_in(&server, "ann").await.status, StatusCode::SEE_OTHER);
    // The same address once more changes nothing.
    let changed = server.patch("/api/v1/users/ann", None, json!({"email": "ann@example.ORG"})).await;
    assert_eq!(changed.status, StatusCode::OK);
    assert_eq!(get(&server, "/api/v1/me", Some(&set[0])).await.status, StatusCode::OK);
    assert_eq!(signed_in(&server, "ann-again").await.status, StatusCode::UNAUTHORIZED);
    for email in ["moved@example.org", "ann@example.org"] {
        let changed = server.patch("/api/v1/users/ann", None, json!({"email": email})).await;
        assert_eq!(changed.status, StatusCode::OK);
    }
    // A changed address ends what was there, and begins anew with who has it.
    assert_eq!(get(&server, "/api/v1/me", Some(&set[0])).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(signed_in(&server, "ann-again").await.status, StatusCode::SEE_OTHER);
    assert_eq!(signed_in(&server, "ann").await.status, StatusCode::UNAUTHORIZED);
    let events = server.get("/api/v1/events?limit=1000").await;
    assert!(events.text.contains("signed in by the OpenID provider: token"), "{events:?}");
    assert!(events.text.contains("the OpenID provider, which knows them from now on: token"), "{events:?}");
    assert!(!events.text.contains("ann-again"), "what is there stays for ever: {events:?}");
}

#[tokio::test]
async fn who_is_no_user_is_not_let_in() {
    let Some(issuer) = Issuer::start() else { return };
    let server = trusting(&section(&issuer)).await;
    // An address that nobody looked at is whatever its owner typed.
    let set = server.patch("/api/v1/users/ann", None, json!({"email": "ank@example.org"})).await;
    assert_eq!(set.status, StatusCode::OK);
    // A letter that becomes a k when it is made small is none.
    server.user("dan", "user", &["acme"]).await;
    for account in ["bob", "ank-unverified", "kelvin", "nobody"] {
        let refused = signed_in(&server, account).await;
        assert_eq!((refused.status, cookies(&refused).len()), (StatusCode::UNAUTHORIZED, 0), "{account}: {refused:?}");
    }
    assert_eq!(signed_in(&server, "ank").await.status, StatusCode::SEE_OTHER);
    let disabled = server.patch("/api/v1/users/ann", None, json!({"disabled": true})).await;
    assert_eq!(disabled.status, StatusCode::OK);
    assert_eq!(signed_in(&server, "ank").await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(server.delete("/api/v1/users/ann").await.status, StatusCode::NO_CONTENT);
    assert_eq!(signed_in(&server, "ank").await.status, StatusCode::UNAUTHORIZED);
}

/// What is stolen on the way is good for nothing in another browser, and what was used is good for nothing again.
#[tokio::test]
async fn a_code_is_good_once_and_in_the_browser_that_asked_for_it() {
    let Some(issuer) = Issuer::start() else { return };
    let server = trusting(&section(&issuer)).await;
    let (url, kept) = begun(&server).await;
    let back = path(&Browser::new().sign_in(&url, "ann").await);
    let (other_url, others) = begun(&server).await;
    for cookie in
        [None, Some(others.as_str()), Some("__Host-perennial_oidc=a.b.c.d"), Some("__Host-perennial_oidc=...")]
    {
        let refused = get(&server, &back, cookie).await;
        assert_eq!(
            (refused.status, refused.problem().0.as_str()),
            (StatusCode::BAD_REQUEST, "sign-in-not-begun"),
            "{cookie:?}"
        );
    }
    // With the state of another browser, whose verifier is not the one that the code was asked with.
    let mut stolen = Url::parse(&format!("https://perennial.example{back}")).unwrap();
    let state = Url::parse(&other_url).unwrap().query_pairs().find(|(name, _)| name == "state").unwrap().1.into_owned();
    let pairs: Vec<(String, String)> =
        stolen.query_pairs().map(|(name, value)| (name.to_string(), value.to_string())).collect();
    stolen
        .query_pairs_mut()
        .clear()
        .extend_pairs(pairs.iter().map(|(name, value)| (name, if name == "state" { &state } else { value })));
    let refused = get(&server, &path(&stolen), Some(&others)).await;
    assert_eq!(refused.status, StatusCode::UNAUTHORIZED, "{refused:?}");

    let (url, kept_now) = begun(&server).await;
    let back_now = path(&Browser::new().sign_in(&url, "ann").await);
    let iss = format!("{back_now}&iss=x")
        .replace(&format!("iss={}", issuer.url.replace(':', "%3A").replace('/', "%2F")), "i=");
    assert_eq!(get(&server, &iss, Some(&kept_now)).await.status, StatusCode::UNAUTHORIZED, "{iss}");
    assert_eq!(get(&server, &back_now, Some(&kept_now)).await.status, StatusCode::SEE_OTHER);
    assert_eq!(get(&server, &back_now, Some(&kept_now)).await.status, StatusCode::UNAUTHORIZED);
    // The attempt to steal it took nothing from the browser that asked for it.
    assert_eq!(get(&server, &back, Some(&kept)).await.status, StatusCode::SEE_OTHER);
    // A code beside an error is none.
    let (url, kept_now) = begun(&server).await;
    let back_now = path(&Browser::new().sign_in(&url, "ann").await);
    let cancelled = get(&server, &format!("{back_now}&error=access_denied"), Some(&kept_now)).await;
    assert_eq!(cancelled.status, StatusCode::UNAUTHORIZED, "{cancelled:?}");
    // What was signed is for another browser.
    let (name, value) = kept_now.split_once('=').unwrap();
    let parts: Vec<&str> = value.split('.').collect();
    let other = format!("{name}={}.another.{}.{}", parts[0], parts[2], parts[3]);
    assert_eq!(get(&server, &back_now, Some(&other)).await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_secret_is_shown_to_the_provider_and_to_nobody_else() {
    let Some(issuer) = Issuer::start() else { return };
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("secret");
    let with = |secret: &str| {
        std::fs::write(&file, secret).unwrap();
        let client_id = Some("perennial".to_owned());
        OidcSection { client_id, client_secret_file: Some(file.clone()), ..section(&issuer) }
    };
    let server = trusting(&with("a secret of the tests\n")).await;
    assert_eq!(signed_in(&server, "ann").await.status, StatusCode::SEE_OTHER);
    let server = trusting(&with("another one\n")).await;
    let refused = signed_in(&server, "ann").await;
    // That is no fault of who signs in, and nothing they should know of.
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE, "{refused:?}");
    assert!(!refused.text.contains("invalid_client"), "{refused:?}");
    std::fs::write(&file, "\n").unwrap();
    let empty = Provider::new(&OidcSection { client_secret_file: Some(file.clone()), ..section(&issuer) }).unwrap_err();
    assert!(empty.to_string().contains("oidc.client_secret_file"), "{empty}");
}

/// Whatever is wrong with what the provider says, nobody is let in by it.
#[tokio::test]
async fn a_token_that_does_not_hold_lets_nobody_in() {
    let Some(issuer) = Issuer::start() else { return };
    let server = trusting(&section(&issuer)).await;
    let kinds = ["nonce", "no-nonce", "audience", "two-audiences", "issuer", "expired", "other-key", "unsigned"];
    for kind in kinds {
        let refused = signed_in(&server, &format!("ann--{kind}")).await;
        assert_eq!((refused.status, cookies(&refused).len()), (StatusCode::UNAUTHORIZED, 0), "{kind}: {refused:?}");
        assert!(!refused.text.contains("another") && !refused.text.contains(&issuer.url), "{kind}: {refused:?}");
    }
    // Who the address is of is asked with that token, and the answer is about somebody else.
    let refused = signed_in(&server, "ann--subject").await;
    assert_eq!((refused.status, cookies(&refused).len()), (StatusCode::SERVICE_UNAVAILABLE, 0), "{refused:?}");
    // The same way, with nothing wrong.
    assert_eq!(signed_in(&server, "ann--none").await.status, StatusCode::SEE_OTHER);
}

/// It changed its keys, and does not answer for a while.
#[tokio::test]
async fn a_provider_that_was_away_is_asked_anew() {
    let Some(issuer) = Issuer::start() else { return };
    let server = trusting(&section(&issuer)).await;
    issuer.run("kill");
    let refused = get(&server, BEGIN, None).await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE, "{refused:?}");
    issuer.run("restart");
    let server = trusting(&section(&issuer)).await;
    assert_eq!(signed_in(&server, "ann").await.status, StatusCode::SEE_OTHER);
    issuer.run("kill");
    issuer.run("restart");
    assert_eq!(signed_in(&server, "ann").await.status, StatusCode::SEE_OTHER);
}

#[tokio::test]
async fn nobody_vouches_where_the_configuration_names_no_provider() {
    let server = Server::start().await;
    for path in [BEGIN, "/api/v1/sessions/oidc/callback?code=a&state=b"] {
        let cookie = "__Host-perennial_oidc=b.b.b.L2RvY3M";
        assert_eq!(get(&server, path, Some(cookie)).await.status, StatusCode::NOT_FOUND, "{path}");
    }
    let elsewhere = get(&server, &format!("{BEGIN}?returnTo=//evil.example"), None).await;
    assert_eq!(
        (elsewhere.status, elsewhere.problem().1.as_deref()),
        (StatusCode::BAD_REQUEST, Some("returnTo")),
        "{elsewhere:?}"
    );
}
