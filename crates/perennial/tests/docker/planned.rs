//! A pod of a plan on a real engine: what the plan says reaches its program, and so do secrets that were made for it.

use crate::installation::{BUSYBOX, IDLE, Installation, Pod};
use reqwest::{Method, StatusCode};
use serde_json::json;

#[test]
fn runc_a_pod_of_a_plan_has_its_secrets_for_ever() {
    let installation = Installation::new();
    let definition = json!({"name": "notes", "plans": [{"name": "small", "image": BUSYBOX, "profile": "declared",
        "volumes": [{"name": "data", "mountPath": "/data", "size": "64Mi"}], "command": ["sh", "-c", IDLE],
        "env": {"PORT": "80", "KEY": {"generate": {"length": 40}}}}]});
    let (status, answer) = installation.request(Method::PUT, "/api/v1/services/notes", Some(&definition));
    assert_eq!(status, StatusCode::OK, "{answer:#}");
    let order = json!({"name": "one", "plan": "notes/small", "env": {"MORE": "of it"}});
    let answer = installation.post("/api/v1/pods", &order);
    installation.succeeded(answer["operation"]["id"].as_str().unwrap());
    let pod = Pod { id: answer["pod"]["id"].as_str().unwrap().to_owned(), name: "one".to_owned() };
    let secrets = installation.get(&format!("/api/v1/pods/{}/secrets", pod.id));
    let key = secrets["secrets"]["KEY"].as_str().unwrap();
    let seen = || installation.sh(&pod, "echo $PORT,$MORE,$KEY");
    assert_eq!(seen(), format!("80,of it,{key}\n"));
    installation.sh(&pod, "echo kept >/data/file");
    installation.run(&pod, "stop");
    installation.run(&pod, "start");
    assert_eq!(seen(), format!("80,of it,{key}\n"), "its data may be encrypted with it");
    assert_eq!(installation.sh(&pod, "cat /data/file"), "kept\n");
    // Nor is it in what the server wrote down for people.
    assert!(!installation.log().contains(key));
    assert!(!installation.get("/api/v1/events?limit=1000").to_string().contains(key));
}
