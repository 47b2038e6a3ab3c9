//! Signing in with a password, and what a browser's cookie is good for.

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use serde_json::{Value, json};

use crate::server::{Answer, Server, TOKEN, read};

const SESSIONS: &str = "/api/v1/sessions";
const PASSWORD: &str = "correct horse battery staple";

async fn with_ann() -> Server {
    let server = Server::start().await;
    server.user("ann", "user", &["acme"]).await;
    let set = server.patch("/api/v1/users/ann", None, json!({"password": PASSWORD})).await;
    assert_eq!(set.status, StatusCode::OK, "{set:?}");
    server
}

async fn sign_in(server: &Server, user: &str, password: &str) -> Answer {
    let body = json!({"user": user, "password": password}).to_string();
    let request = Request::builder().method("POST").uri(SESSIONS).header("content-type", "application/json");
    read(server.send(request.body(Body::from(body)).unwrap()).await).await
}

/// The cookie that an answer sets.
fn cookie(answer: &Answer) -> String {
    answer.headers["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned()
}

async fn ask(server: &Server, method: Method, path: &str, headers: &[(&str, &str)], body: Value) -> Answer {
    let mut request = Request::builder().method(method).uri(path).header("host", "perennial.example");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
    read(server.send(request.header("content-type", "application/json").body(body).unwrap()).await).await
}

#[tokio::test]
async fn a_password_lets_a_browser_in_until_it_signs_out() {
    let server = with_ann().await;
    let session = sign_in(&server, "ann", PASSWORD).await;
    assert_eq!((session.status, &session.json()["user"]), (StatusCode::CREATED, &json!("ann")), "{session:?}");
    let set = session.headers["set-cookie"].to_str().unwrap();
    for attribute in ["HttpOnly", "Secure", "SameSite=Lax", "Path=/", "Max-Age=43200"] {
        assert!(set.split("; ").any(|one| one == attribute), "{attribute}: {set}");
    }
    assert_eq!(session.headers["cache-control"], "no-store");
    let cookie = cookie(&session);
    let own = [("cookie", cookie.as_str()), ("origin", "https://perennial.example")];
    let me = ask(&server, Method::GET, "/api/v1/me", &own[..1], Value::Null).await;
    assert_eq!((&me.json()["user"], &me.json()["scopes"]), (&json!("ann"), &json!(["read", "operate"])), "{me:?}");
    let pod = ask(&server, Method::POST, "/api/v1/pods", &own, json!({"name": "dev", "image": "debian:12"})).await;
    assert_eq!(pod.status, StatusCode::ACCEPTED, "{pod:?}");
    let out = ask(&server, Method::DELETE, SESSIONS, &own, Value::Null).await;
    assert_eq!(out.status, StatusCode::NO_CONTENT, "{out:?}");
    assert!(out.headers["set-cookie"].to_str().unwrap().contains("Max-Age=0"));
    let after = ask(&server, Method::GET, "/api/v1/me", &own, Value::Null).await;
    assert_eq!(after.status, StatusCode::UNAUTHORIZED);
    let events = server.get("/api/v1/events?limit=1000").await;
    assert!(events.text.contains("user.signed-in") && !events.text.contains(PASSWORD));
}

#[tokio::test]
async fn another_site_cannot_use_the_cookie_to_change_anything() {
    let server = with_ann().await;
    let cookie = cookie(&sign_in(&server, "ann", PASSWORD).await);
    let make = async |headers: &[(&str, &str)]| {
        let all = [&[("cookie", cookie.as_str())], headers].concat();
        ask(&server, Method::POST, "/api/v1/pods", &all, json!({"name": "dev", "image": "debian:12"})).await
    };
    let before = server.footprint().await;
    let foreign: [&[(&str, &str)]; 6] = [
        &[],
        &[("origin", "https://evil.example")],
        &[("origin", "null")],
        &[("origin", "https://perennial.example.evil.example")],
        &[("sec-fetch-site", "cross-site"), ("origin", "https://perennial.example")],
        &[("sec-fetch-site", "same-site")],
    ];
    for headers in foreign {
        let refused = make(headers).await;
        assert_eq!(
            (refused.status, refused.problem().0.as_str()),
            (StatusCode::FORBIDDEN, "cross-site"),
            "{headers:?}"
        );
    }
    assert_eq!(server.footprint().await.0, before.0);
    assert_eq!(make(&[("sec-fetch-site", "same-origin")]).await.status, StatusCode::ACCEPTED);
    // A token that a program sends has no such bounds, whatever cookie comes along.
    let both = [("cookie", cookie.as_str()), ("authorization", &*format!("Bearer {TOKEN}"))];
    let made = ask(&server, Method::POST, "/api/v1/pods", &both, json!({"name": "b", "image": "debian:12"})).await;
    assert_eq!(made.status, StatusCode::ACCEPTED, "{made:?}");
}

/// Or its victim would work in somebody else's name.
#[tokio::test]
async fn another_site_signs_nobody_in() {
    let server = with_ann().await;
    let body = json!({"user": "ann", "password": PASSWORD});
    let foreign: [(&[(&str, &str)], StatusCode); 3] = [
        (&[("origin", "https://evil.example")], StatusCode::FORBIDDEN),
        (&[("sec-fetch-site", "cross-site")], StatusCode::FORBIDDEN),
        (&[("origin", "https://perennial.example")], StatusCode::CREATED),
    ];
    for (headers, status) in foreign {
        let answer = ask(&server, Method::POST, SESSIONS, headers, body.clone()).await;
        assert_eq!(
            (answer.status, answer.headers.contains_key("set-cookie")),
            (status, status.is_success()),
            "{headers:?}"
        );
    }
    let form = Request::builder().method("POST").uri(SESSIONS).header("content-type", "text/plain");
    let answer = read(server.send(form.body(Body::from(body.to_string())).unwrap()).await).await;
    assert_eq!(answer.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
}

#[tokio::test]
async fn a_cookie_that_is_there_twice_is_none_and_a_token_is_no_session() {
    let server = with_ann().await;
    let cookie = cookie(&sign_in(&server, "ann", PASSWORD).await);
    let twice = format!("__Host-perennial_session=another; {cookie}");
    let me = ask(&server, Method::GET, "/api/v1/me", &[("cookie", &twice)], Value::Null).await;
    assert_eq!(me.status, StatusCode::UNAUTHORIZED);
    let (_, token) = server.token("ann", &["read"]).await;
    let refused = server.delete_as(&token, SESSIONS).await;
    assert_eq!((refused.status, refused.problem().0.as_str()), (StatusCode::CONFLICT, "no-session"));
    assert_eq!(server.get_as(&token, "/api/v1/me").await.status, StatusCode::OK);
}

#[tokio::test]
async fn whatever_does_not_fit_is_answered_alike_and_many_tries_lock_out() {
    let server = with_ann().await;
    server.user("bob", "user", &[]).await;
    let wrong = sign_in(&server, "ann", "wrong").await;
    assert_eq!(wrong.status, StatusCode::UNAUTHORIZED);
    let text = |answer: &Answer| {
        let mut problem = answer.json();
        problem.as_object_mut().unwrap().remove("requestId");
        problem
    };
    for (user, password) in [("bob", PASSWORD), ("nobody", PASSWORD)] {
        let answer = sign_in(&server, user, password).await;
        assert_eq!((answer.status, text(&answer)), (wrong.status, text(&wrong)), "{user}");
    }
    for _ in 0..5 {
        assert_eq!(sign_in(&server, "ann", "wrong").await.status, StatusCode::UNAUTHORIZED);
    }
    let locked = sign_in(&server, "ann", PASSWORD).await;
    assert_eq!((locked.status, text(&locked)), (wrong.status, text(&wrong)), "even with the right one");
    server.clock.advance(jiff::SignedDuration::from_secs(31));
    assert_eq!(sign_in(&server, "ann", PASSWORD).await.status, StatusCode::CREATED);
    // Who got in begins anew.
    for _ in 0..5 {
        sign_in(&server, "ann", "wrong").await;
    }
    assert_eq!(sign_in(&server, "ann", PASSWORD).await.status, StatusCode::CREATED);
}

#[tokio::test]
async fn of_many_guesses_at_once_no_more_are_looked_at_than_of_one_after_the_other() {
    let server = with_ann().await;
    let guesses = (0..20).map(|n| {
        let password = if n == 19 { PASSWORD } else { "wrong" };
        sign_in(&server, "ann", password)
    });
    let answers = futures::future::join_all(guesses).await;
    let let_in = answers.iter().filter(|answer| answer.status == StatusCode::CREATED).count();
    assert_eq!(let_in, 0, "the right one came too late");
}

#[tokio::test]
async fn who_is_disabled_or_has_another_password_is_not_let_in() {
    let server = with_ann().await;
    let cookie = cookie(&sign_in(&server, "ann", PASSWORD).await);
    server.patch("/api/v1/users/ann", None, json!({"disabled": true})).await;
    assert_eq!(sign_in(&server, "ann", PASSWORD).await.status, StatusCode::UNAUTHORIZED);
    let me = ask(&server, Method::GET, "/api/v1/me", &[("cookie", &cookie)], Value::Null).await;
    assert_eq!(me.status, StatusCode::UNAUTHORIZED);
    server.patch("/api/v1/users/ann", None, json!({"disabled": false})).await;
    let me = async || ask(&server, Method::GET, "/api/v1/me", &[("cookie", &cookie)], Value::Null).await.status;
    assert_eq!(me().await, StatusCode::OK);
    server.patch("/api/v1/users/ann", None, json!({"password": "another one of hers"})).await;
    assert_eq!(me().await, StatusCode::UNAUTHORIZED, "who came in with the old one");
    assert_eq!(sign_in(&server, "ann", PASSWORD).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(sign_in(&server, "ann", "another one of hers").await.status, StatusCode::CREATED);
    for bad in [json!({}), json!({"user": "ann"}), json!({"user": "A N N", "password": "x"}), json!([]), json!("x")] {
        let answer = ask(&server, Method::POST, SESSIONS, &[], bad.clone()).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{bad}: {answer:?}");
    }
}
