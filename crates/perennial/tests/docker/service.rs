//! A real service from a package registry, through the whole life of a subscription: what people put into it through its own API is
//! there each time.

use crate::installation::{DATASETTE, Installation, Pod, eventually};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

/// The service's own API, on the port that is published on the host.
struct Service<'a> {
    installation: &'a Installation,
    pod: Pod,
}

impl Service<'_> {
    /// The address it has now; `None` while nothing is published.
    fn url(&self, path: &str) -> Option<String> {
        let container = self.installation.show(&self.pod)["container"]["id"].as_str()?.to_owned();
        let (ports, is_there) = self.installation.docker.try_run(&["port", &container, "8001/tcp"]);
        let address = ports.lines().next().filter(|_| is_there)?;
        Some(format!("http://{}{path}", address.trim()))
    }

    fn ask(&self, method: &Method, path: &str, body: Option<&Value>) -> (StatusCode, Value) {
        let once = || self.installation.ask_anybody(method.clone(), &self.url(path)?, body).ok();
        eventually("the service answers", once)
    }

    fn notes(&self) -> (StatusCode, Value) {
        self.ask(&Method::GET, "/notes/notes.json?_shape=array", None)
    }

    fn holds(&self, when: &str, expected: &[&str]) {
        let (status, notes) = self.notes();
        let texts: Vec<&str> = notes
            .as_array()
            .unwrap_or_else(|| panic!("{when}: {status} {notes}"))
            .iter()
            .map(|row| row["text"].as_str().unwrap())
            .collect();
        assert_eq!(texts, expected, "{when}");
    }

    fn add(&self, text: &str) {
        let rows = json!({"rows": [{"text": text}]});
        let (status, answer) = self.ask(&Method::POST, "/notes/notes/-/insert", Some(&rows));
        assert_eq!(status, StatusCode::CREATED, "{answer}");
    }
}

/// Asks something of the subscription and waits for what follows.
fn asked(installation: &Installation, path: &str, body: &Value) -> Value {
    let answer = installation.post(path, body);
    if let Some(operation) = answer["operation"]["id"].as_str() {
        installation.succeeded(operation);
    }
    answer
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

    let made = asked(&installation, "/api/v1/subscriptions", &json!({"name": "wf", "plan": "notes/basic"}));
    let of = |name: &str| made["subscription"][name].as_str().unwrap().to_owned();
    let (path, pod) = (format!("/api/v1/subscriptions/{}", of("id")), Pod { id: of("pod"), name: "wf".to_owned() });
    let service = Service { installation: &installation, pod };
    let table = json!({"table": "notes", "rows": [{"id": 1, "text": "first"}], "pk": "id"});
    let (status, answer) = service.ask(&Method::POST, "/notes/-/create", Some(&table));
    assert_eq!(status, StatusCode::CREATED, "{answer}");
    service.holds("made", &["first"]);

    asked(&installation, &format!("{path}/restart-pod"), &json!({}));
    service.holds("restarted", &["first"]);
    service.add("second");
    installation.run(&service.pod, "stop");
    installation.assert_released(&service.pod);
    installation.run(&service.pod, "start");
    service.holds("stopped and started", &["first", "second"]);

    let over = asked(&installation, &format!("{path}/expire"), &json!({}));
    assert_eq!(over["subscription"]["state"], "expired");
    installation.assert_phase(&service.pod, "paused");
    assert_eq!(service.url("/"), None, "nobody is served");
    let start = format!("/api/v1/pods/{}/start", service.pod.id);
    let (status, refused) = installation.request(Method::POST, &start, Some(&json!({})));
    assert_eq!((status, &refused["code"]), (StatusCode::CONFLICT, &json!("subscription-ended")), "{refused:#}");
    let back = asked(&installation, &format!("{path}/renew"), &json!({"expiresAt": null}));
    assert_eq!(back["subscription"]["state"], "active");
    service.holds("renewed", &["first", "second"]);

    asked(&installation, &format!("{path}/change-plan"), &json!({"plan": "pro"}));
    service.holds("in another plan", &["first", "second"]);
    assert_eq!(installation.show(&service.pod)["spec"]["resources"]["memory"], 512 << 20);
    service.add("third");

    asked(&installation, &format!("{path}/reset-pod"), &json!({"confirm": "wf"}));
    assert_eq!(service.notes().0, StatusCode::NOT_FOUND, "a reset starts anew");
    let shown = installation.get(&path);
    assert_eq!(shown["resetCount"], 1);
    let snapshot = json!({"snapshotId": shown["lastResetSnapshot"], "confirm": "wf"});
    installation.do_with(&service.pod, "restore", &snapshot);
    service.holds("brought back from before the reset", &["first", "second", "third"]);
}
