//! Real services from a package registry, through the whole life of a subscription: what people put into them through their own API is
//! there each time. Datasette is always walked; those of the catalogue, whose names begin with `services_`, by `./dev test --services`.

use std::cell::RefCell;

use crate::installation::{DATASETTE, GHOST, Installation, N8N, Pod, eventually};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

/// A service in the catalogue, and how its own API is spoken to.
struct Kind {
    /// The port in the container.
    port: u16,
    /// What it is subscribed to, and what that is changed to.
    plans: [&'static str; 2],
    /// Makes the first text where there is nothing yet.
    begin: fn(&Service, &str),
    add: fn(&Service, &str),
    /// The texts in the order they were made; `None` while it does not serve them.
    texts: fn(&Service) -> Option<Vec<String>>,
    /// Whether it answers as one that nobody put anything into.
    is_new: fn(&Service) -> Option<bool>,
    /// The page it was asked from, where it asks for that.
    origin: Option<&'static str>,
}

/// The service's own API, on the port that is published on the host.
struct Service<'a> {
    installation: &'a Installation,
    pod: Pod,
    kind: Kind,
    /// What it knows us by.
    cookie: RefCell<Option<String>>,
}

impl Service<'_> {
    /// The address it has now; `None` while nothing is published.
    fn url(&self, path: &str) -> Option<String> {
        let container = self.installation.show(&self.pod)["container"]["id"].as_str()?.to_owned();
        let port = format!("{}/tcp", self.kind.port);
        let (ports, is_there) = self.installation.docker.try_run(&["port", &container, &port]);
        let address = ports.lines().next().filter(|_| is_there)?;
        Some(format!("http://{}{path}", address.trim()))
    }

    /// One request; `None` when nobody answers it.
    fn try_ask(&self, method: &Method, path: &str, body: Option<&Value>) -> Option<(StatusCode, Value)> {
        let known = self.cookie.borrow().clone();
        let url = self.url(path)?;
        let known = [("cookie", known.as_deref()), ("origin", self.kind.origin)];
        let answer = self.installation.ask_anybody(method.clone(), &url, &known, body);
        let (status, answer, set) = answer.ok()?;
        if set.is_some() {
            *self.cookie.borrow_mut() = set;
        }
        Some((status, answer))
    }

    fn ask(&self, method: &Method, path: &str, body: Option<&Value>) -> (StatusCode, Value) {
        eventually("the service answers", || self.try_ask(method, path, body))
    }

    fn holds(&self, when: &str, expected: &[&str]) {
        assert_eq!(eventually(when, || (self.kind.texts)(self)), expected, "{when}");
    }

    fn add(&self, text: &str) {
        (self.kind.add)(self, text);
    }
}

const DATASETTE_KIND: Kind = Kind {
    port: 8001,
    plans: ["basic", "pro"],
    begin: |service, text| {
        let table = json!({"table": "notes", "rows": [{"id": 1, "text": text}], "pk": "id"});
        let (status, answer) = service.ask(&Method::POST, "/notes/-/create", Some(&table));
        assert_eq!(status, StatusCode::CREATED, "{answer}");
    },
    add: |service, text| {
        let rows = json!({"rows": [{"text": text}]});
        let (status, answer) = service.ask(&Method::POST, "/notes/notes/-/insert", Some(&rows));
        assert_eq!(status, StatusCode::CREATED, "{answer}");
    },
    texts: |service| {
        let (_, notes) = service.try_ask(&Method::GET, "/notes/notes.json?_shape=array", None)?;
        let of_row = |row: &Value| row["text"].as_str().map(str::to_owned);
        notes.as_array()?.iter().map(of_row).collect()
    },
    is_new: |service| {
        let (status, _) = service.try_ask(&Method::GET, "/notes/notes.json?_shape=array", None)?;
        Some(status == StatusCode::NOT_FOUND)
    },
    origin: None,
};

/// Workflows are its texts, by their names.
const N8N_KIND: Kind = Kind {
    port: 5678,
    plans: ["basic", "plus"],
    begin: |service, text| {
        let owner =
            json!({"email": "owner@example.invalid", "firstName": "An", "lastName": "Owner", "password": "Only4Tests"});
        // While it starts it answers whatever it is asked with 200 and a sentence.
        eventually("somebody owns it", || {
            let (_, made) = service.try_ask(&Method::POST, "/rest/owner/setup", Some(&owner))?;
            made["data"]["id"].is_string().then_some(())
        });
        service.add(text);
    },
    add: |service, text| {
        let workflow = json!({"name": text, "nodes": [], "connections": {}, "settings": {}, "active": false});
        let (status, made) = service.ask(&Method::POST, "/rest/workflows", Some(&workflow));
        assert!(status == StatusCode::OK && made["data"]["id"].is_string(), "{status}: {made}");
    },
    // The cookie of before: it is signed with the key in the volume.
    texts: |service| {
        let (_, workflows) = service.try_ask(&Method::GET, "/rest/workflows", None)?;
        let mut found: Vec<(&str, &str)> = workflows["data"]
            .as_array()?
            .iter()
            .map(|flow| Some((flow["createdAt"].as_str()?, flow["name"].as_str()?)))
            .collect::<Option<_>>()?;
        found.sort_unstable();
        Some(found.into_iter().map(|(_, name)| name.to_owned()).collect())
    },
    is_new: |service| {
        let (status, settings) = service.try_ask(&Method::GET, "/rest/settings", None)?;
        let is_set_up = settings["data"]["userManagement"]["showSetupOnFirstLoad"].as_bool()?;
        (status == StatusCode::OK).then_some(is_set_up)
    },
    origin: None,
};

/// Where readers of a site are, by the plan that is shipped.
const GHOST_URL: &str = "http://localhost:2368";
const GHOST_API: &str = "/ghost/api/admin";

/// Posts are its texts, by their titles.
const GHOST_KIND: Kind = Kind {
    port: 2368,
    // There is one plan of it.
    plans: ["basic", "basic"],
    begin: |service, text| {
        let (email, password) = ("owner@example.invalid", "Only4Tests0nly");
        let owner = json!({"name": "An Owner", "email": email, "password": password, "blogTitle": "A Site"});
        eventually("somebody owns it", || {
            let path = format!("{GHOST_API}/authentication/setup/");
            let (status, _) = service.try_ask(&Method::POST, &path, Some(&json!({"setup": [owner]})))?;
            (status == StatusCode::CREATED).then_some(())
        });
        let (status, answer) = service.ask(
            &Method::POST,
            &format!("{GHOST_API}/session/"),
            Some(&json!({"username": email, "password": password})),
        );
        assert_eq!(status, StatusCode::CREATED, "{answer}");
        service.add(text);
    },
    add: |service, text| {
        let post = json!({"posts": [{"title": text, "status": "published"}]});
        let (status, made) = service.ask(&Method::POST, &format!("{GHOST_API}/posts/"), Some(&post));
        assert_eq!(status, StatusCode::CREATED, "{made}");
    },
    // The cookie of before: sessions are in the database.
    texts: |service| {
        let path = format!("{GHOST_API}/posts/?order=created_at%20asc&fields=title&limit=all");
        let (_, found) = service.try_ask(&Method::GET, &path, None)?;
        let titles = found["posts"].as_array()?.iter().map(|post| post["title"].as_str().map(str::to_owned));
        let titles: Vec<String> = titles.collect::<Option<_>>()?;
        // A new site has a post of Ghost's own.
        Some(titles.into_iter().filter(|title| title != "Coming soon").collect())
    },
    is_new: |service| {
        let (status, found) = service.try_ask(&Method::GET, &format!("{GHOST_API}/authentication/setup/"), None)?;
        let is_set_up = found["setup"][0]["status"].as_bool()?;
        (status == StatusCode::OK).then_some(!is_set_up)
    },
    origin: Some(GHOST_URL),
};

/// Asks something of the subscription and waits for what follows.
fn asked(installation: &Installation, path: &str, body: &Value) -> Value {
    let answer = installation.post(path, body);
    if let Some(operation) = answer["operation"]["id"].as_str() {
        installation.succeeded(operation);
    }
    answer
}

/// The life of a subscription to a service that is in the catalogue; answers its pod.
fn walk(installation: &Installation, name: &str, kind: Kind) -> Pod {
    let [first, next] = kind.plans;
    let made = asked(installation, "/api/v1/subscriptions", &json!({"name": "wf", "plan": format!("{name}/{first}")}));
    let of = |name: &str| made["subscription"][name].as_str().unwrap().to_owned();
    let (path, pod) = (format!("/api/v1/subscriptions/{}", of("id")), Pod { id: of("pod"), name: "wf".to_owned() });
    let service = Service { installation, pod, kind, cookie: RefCell::new(None) };
    (service.kind.begin)(&service, "first");
    service.holds("made", &["first"]);

    asked(installation, &format!("{path}/restart-pod"), &json!({}));
    service.holds("restarted", &["first"]);
    service.add("second");
    installation.run(&service.pod, "stop");
    installation.assert_released(&service.pod);
    installation.run(&service.pod, "start");
    service.holds("stopped and started", &["first", "second"]);

    let over = asked(installation, &format!("{path}/expire"), &json!({}));
    assert_eq!(over["subscription"]["state"], "expired");
    installation.assert_phase(&service.pod, "paused");
    assert_eq!(service.url("/"), None, "nobody is served");
    let start = format!("/api/v1/pods/{}/start", service.pod.id);
    let (status, refused) = installation.request(Method::POST, &start, Some(&json!({})));
    assert_eq!((status, &refused["code"]), (StatusCode::CONFLICT, &json!("subscription-ended")), "{refused:#}");
    let back = asked(installation, &format!("{path}/renew"), &json!({"expiresAt": null}));
    assert_eq!(back["subscription"]["state"], "active");
    service.holds("renewed", &["first", "second"]);

    // Nothing to change to where there is but one.
    if first != next {
        asked(installation, &format!("{path}/change-plan"), &json!({"plan": next}));
        service.holds("in another plan", &["first", "second"]);
        assert_eq!(installation.get(&path)["plan"], format!("{name}/{next}"));
    }
    service.add("third");

    asked(installation, &format!("{path}/reset-pod"), &json!({"confirm": "wf"}));
    let is_new = eventually("it serves after the reset", || (service.kind.is_new)(&service));
    assert!(is_new, "a reset starts anew");
    let shown = installation.get(&path);
    assert_eq!(shown["resetCount"], 1);
    let snapshot = json!({"snapshotId": shown["lastResetSnapshot"], "confirm": "wf"});
    installation.do_with(&service.pod, "restore", &snapshot);
    service.holds("brought back from before the reset", &["first", "second", "third"]);
    service.pod
}

/// What Perennial ships, but for the image: no registry of images is needed.
fn walk_of_the_catalogue(name: &str, image: &str, kind: Kind) {
    let installation = Installation::new();
    assert!(installation.docker.try_run(&["image", "inspect", image]).1, "{image} is missing: ./dev test --services");
    let path = format!("/api/v1/services/{name}");
    let shipped = installation.get(&path);
    assert_eq!(shipped["source"], "shipped");
    let mut definition = shipped["definition"].clone();
    for plan in definition["plans"].as_array_mut().unwrap() {
        plan["image"] = json!(image);
    }
    let (status, answer) = installation.request(Method::PUT, &path, Some(&definition));
    assert_eq!(status, StatusCode::OK, "{answer:#}");
    walk(&installation, name, kind);
}

#[test]
fn runc_a_real_service_keeps_its_content_through_the_life_of_its_subscription() {
    let installation = Installation::new();
    let plan = |name: &str, memory: &str, disk: &str| {
        json!({"name": name, "image": DATASETTE, "profile": "declared", "command": ["serve-datasette", "/data/notes.db"],
            "volumes": [{"name": "data", "mountPath": "/data", "size": disk}], "ports": [8001],
            "resources": {"memory": memory}, "env": {"DATASETTE_SECRET": {"generate": {"length": 40}}}})
    };
    let service = json!({"name": "notes", "plans": [plan("basic", "256Mi", "64Mi"), plan("pro", "512Mi", "128Mi")]});
    let (status, answer) = installation.request(Method::PUT, "/api/v1/services/notes", Some(&service));
    assert_eq!(status, StatusCode::OK, "{answer:#}");
    let pod = walk(&installation, "notes", DATASETTE_KIND);
    assert_eq!(installation.show(&pod)["spec"]["resources"]["memory"], 512 << 20);
}

#[test]
fn services_runc_n8n_keeps_its_workflows_through_the_life_of_its_subscription() {
    walk_of_the_catalogue("n8n", N8N, N8N_KIND);
}

#[test]
fn services_runc_ghost_keeps_its_posts_through_the_life_of_its_subscription() {
    walk_of_the_catalogue("ghost", GHOST, GHOST_KIND);
}
