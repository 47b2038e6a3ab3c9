//! What an object store may answer besides what it should: a scripted server instead of a real one.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use perennial_snapshots::backend::{Addressing, ConnectOptions, Location, Patience};
use perennial_snapshots::*;

/// An answer; none: the connection is held and nothing is said.
type Answer = Option<(u16, String)>;
type Script = dyn Fn(&str, &str) -> Answer + Send + Sync;

/// Answers each request line, such as `GET /bucket/p/config`, by the script. Its threads end with the process.
fn serve(tls: Option<Arc<rustls::ServerConfig>>, script: impl Fn(&str) -> Answer + Send + Sync + 'static) -> u16 {
    serve_hosts(tls, move |request, _| script(request))
}

/// The same for a script that also wants to know the host that is asked for.
fn serve_hosts(
    tls: Option<Arc<rustls::ServerConfig>>,
    script: impl Fn(&str, &str) -> Answer + Send + Sync + 'static,
) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let script: Arc<Script> = Arc::new(script);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, tls, script) = (stream.unwrap(), tls.clone(), Arc::clone(&script));
            std::thread::spawn(move || match tls {
                None => converse(stream, &script),
                Some(config) => {
                    let connection = rustls::ServerConnection::new(config).unwrap();
                    converse(rustls::StreamOwned::new(connection, stream), &script);
                }
            });
        }
    });
    port
}

fn converse(stream: impl Read + Write, script: &Arc<Script>) {
    let mut stream = BufReader::new(stream);
    // A client that goes away, or does not trust us, ends the conversation.
    let mut exchange = || -> io::Result<bool> {
        let mut first = String::new();
        if stream.read_line(&mut first)? == 0 {
            return Ok(false);
        }
        let mut length = 0;
        let mut host = String::new();
        loop {
            let mut line = String::new();
            stream.read_line(&mut line)?;
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("host:") {
                value.trim().clone_into(&mut host);
            }
            if line.trim().is_empty() {
                break;
            }
        }
        io::copy(&mut (&mut stream).take(length), &mut io::sink())?;
        let request = first.rsplit_once(' ').unwrap().0.to_owned();
        let Some((status, body)) = script(&request, &host) else {
            // Until the client gives up.
            stream.read_line(&mut first)?;
            return Ok(false);
        };
        let shown = if request.starts_with("HEAD") { "" } else { &body };
        let head = format!(
            "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nlast-modified: Fri, 27 Nov 2026 09:00:00 GMT\r\netag: \"e\"\r\n\r\n",
            body.len()
        );
        stream.get_mut().write_all(format!("{head}{shown}").as_bytes())?;
        stream.get_mut().flush()?;
        Ok(true)
    };
    while exchange().unwrap_or(false) {}
}

fn quick() -> ConnectOptions {
    let patience = Patience {
        retries: 2,
        retry_for: Duration::from_secs(20),
        request: Duration::from_millis(1500),
        ..Patience::default()
    };
    ConnectOptions { patience, ..ConnectOptions::default() }
}

fn connect(address: &str, options: &ConnectOptions) -> Arc<dyn Backend> {
    Location::parse(address, |_| Some("secret-of-the-test".into())).unwrap().connect(options).unwrap()
}

fn backend(script: impl Fn(&str) -> Answer + Send + Sync + 'static) -> Arc<dyn Backend> {
    connect(&format!("s3:http://127.0.0.1:{}/bucket/p", serve(None, script)), &quick())
}

fn listing(keys: &[String], next: Option<&str>) -> Answer {
    let mut xml = String::from("<?xml version=\"1.0\"?><ListBucketResult>");
    for key in keys {
        let time = "2026-11-27T09:00:00.000Z";
        xml += &format!("<Contents><Key>{key}</Key><Size>7</Size><LastModified>{time}</LastModified></Contents>");
    }
    if let Some(token) = next {
        xml += &format!("<IsTruncated>true</IsTruncated><NextContinuationToken>{token}</NextContinuationToken>");
    }
    Some((200, xml + "</ListBucketResult>"))
}

fn is_listing(request: &str) -> bool {
    request.contains("list-type=2")
}

fn no_such(code: &str) -> Answer {
    Some((404, format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>none</Message></Error>")))
}

/// Every way to ask for one object.
fn looks(backend: &dyn Backend, id: Id) -> Vec<BackendError> {
    vec![
        backend.read(FileKind::Pack, id).unwrap_err(),
        backend.read_range(FileKind::Pack, id, 0, 5).unwrap_err(),
        backend.size(FileKind::Pack, id).unwrap_err(),
        backend.remove(FileKind::Pack, id).unwrap_err(),
        backend.drop_caches(FileKind::Pack, id).unwrap_err(),
    ]
}

fn assert_unknown(errors: Vec<BackendError>) {
    for error in errors {
        assert!(!error.is_not_found() && error.is_retryable(), "{error:?}");
        let text = format!("{error}: {} {error:?}", error.source);
        assert!(text.contains("s3:http://127.0.0.1") && !text.contains("secret-of-the-test"), "{text}");
    }
}

#[test]
fn not_found_is_absent_only_when_a_listing_says_so() {
    let id = Id::of(b"x");
    let key = format!("p/data/{}/{id}", &id.to_string()[..2]);
    // A proxy, or a bucket that is gone: everything is "not found".
    for answer in [Some((404, "<html>nothing here</html>".to_owned())), no_such("NoSuchBucket")] {
        let gone = backend(move |_| answer.clone());
        assert_unknown(looks(&*gone, id));
        assert_unknown(vec![gone.list(FileKind::Pack).unwrap_err(), gone.prepare().unwrap_err()]);
        assert!(Repository::exists(&*gone).is_err());
    }
    // The store contradicts itself.
    let listed = key.clone();
    let torn = backend(move |request| match is_listing(request) {
        true => listing(std::slice::from_ref(&listed), None),
        false => no_such("NoSuchKey"),
    });
    assert_unknown(looks(&*torn, id));
    // It really is not there.
    let empty = backend(|request| if is_listing(request) { listing(&[], None) } else { no_such("NoSuchKey") });
    assert_eq!(empty.size(FileKind::Pack, id).unwrap(), None);
    assert!(empty.read(FileKind::Pack, id).unwrap_err().is_not_found());
    empty.remove(FileKind::Pack, id).unwrap();
    assert!(!Repository::exists(&*empty).unwrap());
}

#[test]
fn a_store_that_says_nothing_is_unknown_and_not_waited_for_for_ever() {
    let silent = backend(|_| None);
    let error = silent.size(FileKind::Config, FileKind::CONFIG_ID).unwrap_err();
    assert_eq!(error.source.kind(), io::ErrorKind::TimedOut, "{error:?}");
    assert_unknown(vec![error, silent.write(FileKind::Lock, Id::of(b"x"), b"x").unwrap_err()]);
}

#[test]
fn passing_trouble_is_tried_again_and_lasting_trouble_is_told() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let shaky = backend(move |_| match count.fetch_add(1, Ordering::SeqCst) % 3 {
        2 => Some((200, String::new())),
        _ => Some((503, "<Error><Code>SlowDown</Code></Error>".to_owned())),
    });
    shaky.write(FileKind::Pack, Id::of(b"x"), b"x").unwrap();
    assert_eq!(shaky.read(FileKind::Pack, Id::of(b"x")).unwrap(), b"");
    assert_eq!(asked.load(Ordering::SeqCst), 6);
    let down = backend(|_| Some((500, "<Error><Code>InternalError</Code></Error>".to_owned())));
    let error = down.read(FileKind::Pack, Id::of(b"x")).unwrap_err();
    assert!(error.source.to_string().contains("InternalError"), "{error:?}");
    assert_unknown(vec![error]);
}

#[test]
fn a_listing_has_all_pages_or_is_none() {
    let id = |n: u8| Id::of(&[n]);
    let key = move |n: u8| format!("p/index/{}", id(n));
    let page = move |request: &str| match request {
        r if r.contains("continuation-token=two") => 2,
        r if r.contains("continuation-token=three") => 3,
        _ => 1,
    };
    let whole = backend(move |request| match page(request) {
        1 => listing(&[key(1), key(2)], Some("two")),
        2 => listing(&[key(3)], Some("three")),
        _ => listing(&[key(4)], None),
    });
    let mut found: Vec<_> = whole.list(FileKind::Index).unwrap().into_iter().map(|file| file.id).collect();
    found.sort_unstable();
    let mut expected: Vec<_> = (1..=4).map(id).collect();
    expected.sort_unstable();
    assert_eq!(found, expected);
    let torn = backend(move |request| match page(request) {
        1 => listing(&[key(1)], Some("two")),
        _ => no_such("NoSuchBucket"),
    });
    assert_unknown(vec![torn.list(FileKind::Index).unwrap_err()]);
}

#[test]
fn a_short_answer_is_no_file() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&asked);
    // Whatever part is asked for, something else comes.
    let wrong = backend(move |request| {
        seen.lock().unwrap().push(request.to_owned());
        Some((200, "all of it".to_owned()))
    });
    assert!(wrong.read_range(FileKind::Pack, Id::of(b"x"), 2, 4).is_err());
    assert!(asked.lock().unwrap()[0].starts_with("GET /bucket/p/data/"));
}

#[test]
fn only_the_named_authorities_are_trusted() {
    let pair = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&pair).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ca.pem");
    std::fs::write(&file, certificate.pem()).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(pair.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    let port = serve(Some(Arc::new(config)), |_| listing(&[], None));
    let address = format!("s3:https://localhost:{port}/bucket");
    let trusting = connect(&address, &ConnectOptions { ca_file: Some(file), ..quick() });
    assert_eq!(trusting.list(FileKind::Index).unwrap(), []);
    let error = connect(&address, &quick()).list(FileKind::Index).unwrap_err();
    assert!(!error.is_not_found(), "{error:?}");
    assert!(error.source.to_string().to_lowercase().contains("certificate"), "{error:?}");
}

/// The name of a bucket before that of a host means something to no resolver here, so the requests go to a proxy, which only an
/// environment can name: this test runs itself again in one.
#[test]
fn a_bucket_before_the_host_is_in_the_host_header_and_in_no_path() {
    const CHILD: &str = "PERENNIAL_TEST_BUCKET_BEFORE_THE_HOST";
    let read = |addressing| {
        let backend = connect("s3:http://localhost:9/bucket/p", &ConnectOptions { addressing, ..quick() });
        assert_eq!(backend.read(FileKind::Config, FileKind::CONFIG_ID).unwrap(), b"the config");
    };
    if std::env::var_os(CHILD).is_some() {
        read(Addressing::Host);
        return read(Addressing::Path);
    }
    let seen = Arc::new(Mutex::new(Vec::new()));
    let asked = Arc::clone(&seen);
    let port = serve_hosts(None, move |request, host| {
        asked.lock().unwrap().push(format!("{request} of {host}"));
        Some((200, "the config".to_owned()))
    });
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["object_answers::a_bucket_before_the_host_is_in_the_host_header_and_in_no_path", "--exact"])
        .env(CHILD, "1")
        .env("http_proxy", format!("http://127.0.0.1:{port}"))
        .env_remove("no_proxy")
        .env_remove("NO_PROXY")
        .output()
        .unwrap();
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
    let by_host = "GET http://bucket.localhost:9/p/config of bucket.localhost:9";
    let by_path = "GET http://localhost:9/bucket/p/config of localhost:9";
    assert_eq!(*seen.lock().unwrap(), [by_host, by_path]);
}

#[test]
fn no_more_requests_are_on_their_way_than_there_may_be() {
    const MOST: usize = 4;
    /// Requests on their way, and the most there ever were.
    type Counts = (Mutex<(usize, usize)>, std::sync::Condvar);
    let counts: Arc<Counts> = Arc::default();
    let counted = Arc::clone(&counts);
    let port = serve(None, move |_| {
        let (counts, changed) = &*counted;
        let mut now = counts.lock().unwrap();
        now.0 += 1;
        now.1 = now.1.max(now.0);
        changed.notify_all();
        // Nobody is answered before as many are here as there may be at once.
        let mut now = changed.wait_while(now, |(_, most)| *most < MOST).unwrap();
        now.0 -= 1;
        Some((200, "content".to_owned()))
    });
    let patience = Patience { connections: MOST, ..Patience::default() };
    let options = ConnectOptions { patience, ..ConnectOptions::default() };
    let backend = connect(&format!("s3:http://127.0.0.1:{port}/bucket/p"), &options);
    std::thread::scope(|scope| {
        for n in 0..32_u8 {
            let backend = &backend;
            scope.spawn(move || backend.read(FileKind::Pack, Id::of(&[n])).unwrap());
        }
    });
    assert_eq!(*counts.0.lock().unwrap(), (0, MOST));
}
