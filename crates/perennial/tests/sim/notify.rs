//! Who is told of what: mail at a real mail server, webhooks at a real listener, the clock a virtual one.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use jiff::SignedDuration;
use perennial::config::{MailSection, WebhookSection};
use perennial::notify::Notifier;
use perennial::service::{Caller, NewUser};
use perennial::store::{Delivery, DeliveryState, Page};
use perennial_core::access::{Role, UserName};
use perennial_core::fault::{Moment, Tap, Verdict};
use perennial_core::operation::{OperationKind, OperationState};
use perennial_core::spec::{Backend, TenantId};
use perennial_drivers::sim::Ailment;

use crate::world::{Server, World, small_spec};

/// A mail server that keeps what it takes in a maildir.
struct MailServer {
    process: Child,
    port: u16,
    directory: tempfile::TempDir,
}

impl MailServer {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let port = free_port();
        let server = Self { process: serve_mail(port, &maildir(&directory)), port, directory };
        server.answers().await;
        server
    }

    async fn answers(&self) {
        // Bounded: a server that does not come up ends the test.
        for _ in 0..200 {
            if tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.is_ok() {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        panic!("the mail server does not answer: is python3-aiosmtpd there?");
    }

    fn section(&self) -> MailSection {
        MailSection {
            server: Some(format!("smtp://127.0.0.1:{}", self.port)),
            from: Some("Perennial <perennial@example.org>".to_owned()),
            ..MailSection::default()
        }
    }

    fn mails(&self) -> Vec<String> {
        let read = |path: PathBuf| std::fs::read_to_string(path).unwrap();
        let Ok(found) = std::fs::read_dir(maildir(&self.directory).join("new")) else { return Vec::new() };
        let mut mails: Vec<String> = found.map(|entry| read(entry.unwrap().path())).collect();
        mails.sort();
        mails
    }
}

impl Drop for MailServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Made by the server, in a form of its own.
fn maildir(directory: &tempfile::TempDir) -> PathBuf {
    directory.path().join("mail")
}

fn serve_mail(port: u16, directory: &Path) -> Child {
    let address = format!("127.0.0.1:{port}");
    Command::new("aiosmtpd")
        .args(["-n", "-l", &address, "-c", "aiosmtpd.handlers.Mailbox"])
        .arg(directory)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn free_port() -> u16 {
    std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

fn notifier(world: &World, server: &Server, mail: &MailSection, webhooks: &[WebhookSection]) -> Notifier {
    let (clock, ids) = (Arc::clone(&server.app.clock), Arc::clone(&server.app.ids));
    let _ = world;
    Notifier::new(server.app.store.clone(), (clock, ids), mail, webhooks).unwrap()
}

/// A member of the default tenant with an address.
async fn member(server: &Server, name: &str, email: Option<&str>) {
    let admin = Caller::admin();
    let name = UserName::parse(name).unwrap();
    let email = email.map(str::to_owned);
    server
        .app
        .user_create(&admin, NewUser { name: name.clone(), email, role: Role::User, password: None })
        .await
        .unwrap();
    server.app.member_add(&admin, &TenantId::default_tenant(), &name).await.unwrap();
}

async fn deliveries(server: &Server) -> Vec<Delivery> {
    server.app.store.delivery_list(None, &Page::first(1000)).await.unwrap()
}

#[tokio::test]
async fn sim_members_are_written_to_when_their_subscription_ends_and_before_its_pod_goes() {
    let world = World::new(601);
    let server = world.server().await;
    let mail = MailServer::start().await;
    member(&server, "ann", Some("ann@example.org")).await;
    member(&server, "bob", None).await;
    let notifier = notifier(&world, &server, &mail.section(), &[]);
    let (id, pod) = crate::subscriptions::subscribed(&world, &server, None).await;
    notifier.tell().await;
    assert!(mail.mails().is_empty(), "nobody is told of what they do themselves");
    let done = server.app.subscription_cancel(&Caller::admin(), id).await.unwrap();
    server.settle(done.subscription.pod).await;
    for _ in 0..68 {
        if server.app.store.pod_fetch(pod).await.unwrap().is_some() {
            crate::subscriptions::a_day(&world, &server, pod).await;
        }
        server.housekeeper().run_due().await;
        notifier.tell().await;
    }
    let subjects = [
        "Subject: A pod of tenant default is gone for good",
        "Subject: The pod wf was deleted",
        "Subject: The pod wf will be deleted",
        "Subject: Your subscription wf is cancelled",
    ];
    let mails = mail.mails();
    let count = |subject: &str| mails.iter().filter(|mail| mail.contains(subject)).count();
    assert_eq!(subjects.map(count), [1, 1, 3, 1], "{mails:#?}");
    for mail in &mails {
        assert!(
            mail.contains("To: ann@example.org") && mail.contains("From: Perennial <perennial@example.org>"),
            "{mail}"
        );
        assert!(mail.contains("Message-ID: <"), "{mail}");
    }
    for days in ["14 days", "7 days", "1 days"] {
        assert!(mails.iter().any(|mail| mail.contains(&format!("is deleted in {days}"))), "{days}");
    }
    assert!(deliveries(&server).await.iter().all(|delivery| delivery.state == DeliveryState::Sent));
}

#[tokio::test]
async fn sim_a_mail_server_that_is_away_is_tried_again_and_nothing_is_mailed_twice() {
    let world = World::new(602);
    let server = world.server().await;
    let mut mail = MailServer::start().await;
    member(&server, "ann", Some("ann@example.org")).await;
    let one = notifier(&world, &server, &mail.section(), &[]);
    let two = notifier(&world, &server, &mail.section(), &[]);
    let (id, _) = crate::subscriptions::subscribed(&world, &server, None).await;
    mail.process.kill().unwrap();
    mail.process.wait().unwrap();
    server.app.subscription_cancel(&Caller::admin(), id).await.unwrap();
    one.tell().await;
    let waiting = deliveries(&server).await;
    assert_eq!((waiting.len(), waiting[0].state, waiting[0].tries), (1, DeliveryState::Pending, 1));
    assert!(waiting[0].problem.is_some());
    mail.process = serve_mail(mail.port, &maildir(&mail.directory));
    mail.answers().await;
    one.tell().await;
    assert_eq!(deliveries(&server).await[0].tries, 1, "not before its time");
    world.clock.advance(SignedDuration::from_mins(2));
    tokio::join!(one.tell(), two.tell());
    assert_eq!(mail.mails().len(), 1);
    let sent = deliveries(&server).await;
    assert_eq!((sent.len(), sent[0].state, sent[0].tries), (1, DeliveryState::Sent, 2));
}

#[tokio::test]
async fn sim_who_dies_while_a_message_is_sent_is_followed_by_somebody_who_sends_it() {
    let world = World::new(603);
    let server = world.server().await;
    let mail = MailServer::start().await;
    member(&server, "ann", Some("ann@example.org")).await;
    let notifier = notifier(&world, &server, &mail.section(), &[]);
    let (id, _) = crate::subscriptions::subscribed(&world, &server, None).await;
    server.app.subscription_cancel(&Caller::admin(), id).await.unwrap();
    // Somebody takes it and is never heard of again.
    let store = &server.app.store;
    let broken = MailSection { server: Some("smtp://127.0.0.1:1".to_owned()), ..mail.section() };
    self::notifier(&world, &server, &broken, &[]).tell().await;
    world.clock.advance(SignedDuration::from_mins(2));
    let due = store.deliveries_due("mail:", world.clock_now(), 10).await.unwrap();
    assert!(store.delivery_take(&due[0], world.clock_now(), SignedDuration::from_mins(2)).await.unwrap());
    assert!(!store.delivery_take(&due[0], world.clock_now(), SignedDuration::from_mins(2)).await.unwrap(), "once");
    notifier.tell().await;
    assert!(mail.mails().is_empty());
    world.clock.advance(SignedDuration::from_mins(3));
    notifier.tell().await;
    assert_eq!(mail.mails().len(), 1);
}

#[tokio::test]
async fn sim_a_snapshot_that_fails_all_night_is_mailed_once() {
    let world = World::new(604);
    let server = world.server().await;
    let mail = MailServer::start().await;
    member(&server, "ann", Some("ann@example.org")).await;
    let notifier = notifier(&world, &server, &mail.section(), &[]);
    let pod = server.running("dev", small_spec(Backend::Overlay)).await;
    let fails = async |hours: i64| {
        let now = world.clock_now();
        let operation = perennial_core::operation::Operation {
            kind: OperationKind::Snapshot,
            state: OperationState::Failed,
            error: Some(perennial_core::operation::Problem {
                code: "disk-full".to_owned(),
                message: "no space is left".to_owned(),
                hint: String::new(),
            }),
            ..server.create(&format!("other{hours}"), small_spec(Backend::Overlay)).await.unwrap().operation
        };
        let (kind, message) = operation.news();
        let event = perennial_core::operation::NewEvent {
            at: now,
            actor: "system".to_owned(),
            tenant: TenantId::default_tenant(),
            pod: Some(pod),
            operation: Some(operation.id),
            kind: kind.to_owned(),
            message,
        };
        let change = perennial::store::Change { events: vec![event], ..perennial::store::Change::default() };
        server.app.store.commit(change).await.unwrap();
        notifier.tell().await;
        world.clock.advance(SignedDuration::from_hours(1));
    };
    for hour in 0..5 {
        fails(hour).await;
    }
    let mails = mail.mails();
    assert_eq!(mails.len(), 1, "{mails:#?}");
    assert!(mails[0].contains("A snapshot of dev failed") && mails[0].contains("no space is left"), "{}", mails[0]);
    world.clock.advance(SignedDuration::from_hours(24));
    fails(99).await;
    assert_eq!(mail.mails().len(), 2);
}

/// A repository that takes nothing.
struct Full;

impl Tap for Full {
    fn at(&self, site: &str, moment: Moment) -> Verdict {
        let is_write = site.starts_with("repository.") && moment == Moment::Before;
        if is_write { Verdict::Fail } else { Verdict::Go }
    }
}

#[tokio::test]
async fn sim_who_has_a_pod_that_falls_ill_again_and_again_is_written_to_once_a_day() {
    let world = World::new(619);
    let server = world.server().await;
    let mail = MailServer::start().await;
    member(&server, "ann", Some("ann@example.org")).await;
    let notifier = notifier(&world, &server, &mail.section(), &[]);
    let pod = server.running("web", crate::health::serving()).await;
    let mut told = Vec::new();
    for hours in [0, 1, 24] {
        world.clock.advance(SignedDuration::from_hours(hours));
        for ailment in [Some(Ailment::Unhealthy), None] {
            world.engine.set_ailment(pod, ailment);
            crate::health::turns(&world, &server, pod, 4).await;
            server.settle(pod).await;
        }
        notifier.tell().await;
        told.push(mail.mails().len());
    }
    assert_eq!(told, [1, 1, 2], "{:?}", mail.mails());
    assert!(mail.mails()[0].contains("web"), "{:?}", mail.mails());
}

/// Nothing has failed for good yet, and there is no snapshot all the same: that is what people have to know.
#[tokio::test]
async fn sim_who_gets_no_snapshots_any_more_is_told_of_it_once() {
    let world = World::new(607);
    let calm = world.server().await;
    let mail = MailServer::start().await;
    member(&calm, "ann", Some("ann@example.org")).await;
    let notifier = notifier(&world, &calm, &mail.section(), &[]);
    let pod = calm.running("dev", small_spec(Backend::Overlay)).await;
    world.engine.write(pod, "/srv/mine", "what matters").unwrap();
    let broken = world.server_with(Arc::new(Full)).await;
    let asked = broken.snapshot(pod).await.unwrap().operation.id;
    for _ in 0..60 {
        broken.work(pod).await;
        notifier.tell().await;
        world.clock.advance(SignedDuration::from_secs(61));
    }
    assert_eq!(broken.operation(asked).await.state, OperationState::Running, "it is still tried");
    let mails = mail.mails();
    assert_eq!(mails.len(), 1, "{mails:#?}");
    assert!(mails[0].contains("A snapshot of dev failed"), "{}", mails[0]);
}

type Seen = Arc<Mutex<Vec<(HeaderMap, String)>>>;

/// A listener that refuses the first so many requests.
async fn listener(refuses: usize) -> (u16, Seen) {
    let seen = Seen::default();
    let heard = Arc::clone(&seen);
    let take = async move |headers: HeaderMap, body: String| {
        let mut all = heard.lock().unwrap();
        all.push((headers, body));
        if all.len() <= refuses { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK }
    };
    let socket = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = socket.local_addr().unwrap().port();
    tokio::spawn(axum::serve(socket, Router::new().route("/hook", post(take))).into_future());
    (port, seen)
}

#[tokio::test]
async fn sim_webhooks_are_signed_tried_again_and_told_apart() {
    let world = World::new(605);
    let server = world.server().await;
    let (port, seen) = listener(1).await;
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "only between the two of us\n").unwrap();
    let hook = WebhookSection {
        name: "billing".to_owned(),
        url: format!("http://127.0.0.1:{port}/hook"),
        secret_file: secret.path().to_owned(),
        events: vec!["subscription.*".to_owned()],
        allow_private: true,
    };
    let notifier = notifier(&world, &server, &MailSection::default(), &[hook]);
    crate::subscriptions::subscribed(&world, &server, None).await;
    notifier.tell().await;
    assert_eq!(deliveries(&server).await[0].problem.as_deref(), Some("answered 500 Internal Server Error"));
    world.clock.advance(SignedDuration::from_mins(1));
    notifier.tell().await;
    let seen = seen.lock().unwrap().clone();
    assert_eq!(seen.len(), 2, "the one event that was asked for, twice");
    let delivery = &deliveries(&server).await[0];
    for (headers, body) in &seen {
        let json: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!((&json["type"], &json["tenant"]), (&"subscription.created".into(), &"default".into()), "{json}");
        assert_eq!(headers["perennial-delivery"], delivery.id.to_string());
        let signature = headers["perennial-signature"].to_str().unwrap();
        let (time, tag) = signature.strip_prefix("t=").unwrap().split_once(",v1=").unwrap();
        assert_eq!(tag, signed("only between the two of us", &format!("{time}.{body}")));
    }
    assert_eq!((delivery.state, delivery.tries), (DeliveryState::Sent, 2));
}

/// By another program than ours.
fn signed(secret: &str, text: &str) -> String {
    let out = Command::new("python3")
        .args([
            "-c",
            "import hmac,sys; print(hmac.new(sys.argv[1].encode(), sys.argv[2].encode(), 'sha256').hexdigest())",
        ])
        .args([secret, text])
        .output()
        .unwrap();
    String::from_utf8(out.stdout).unwrap().trim().to_owned()
}

#[tokio::test]
async fn sim_a_webhook_is_never_asked_in_a_private_network() {
    let world = World::new(606);
    let server = world.server().await;
    let (port, seen) = listener(0).await;
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "only between the two of us\n").unwrap();
    let hook = WebhookSection {
        name: "inside".to_owned(),
        url: format!("https://localhost:{port}/hook"),
        secret_file: secret.path().to_owned(),
        events: Vec::new(),
        allow_private: false,
    };
    let notifier = notifier(&world, &server, &MailSection::default(), &[hook]);
    server.running("dev", small_spec(Backend::Overlay)).await;
    notifier.tell().await;
    let all = deliveries(&server).await;
    assert!(!all.is_empty() && all.iter().all(|delivery| delivery.state == DeliveryState::Pending), "{all:?}");
    assert!(all[0].problem.as_ref().unwrap().contains("private network"));
    assert!(seen.lock().unwrap().is_empty());
}
