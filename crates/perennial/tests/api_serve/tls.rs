//! TLS by files, on a real server: the command line over https, strangers refused, certificates replaced.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use perennial::cli::Exit;
use perennial::config::{Config, EngineKind, ServeArgs};
use perennial::serve::{Reread, Running, ServeError, TlsError};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use crate::command;

/// An authority of our own, and what it signs.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    /// Writes the authority's own certificate.
    fn write(&self, path: &Path) -> PathBuf {
        std::fs::write(path, self.issuer.pem()).unwrap();
        path.to_owned()
    }

    /// Writes a certificate for 127.0.0.1 and its key.
    fn sign(&self, directory: &Path) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(directory.join("tls.crt"), certificate.pem()).unwrap();
        std::fs::write(directory.join("tls.key"), key.serialize_pem()).unwrap();
    }
}

fn args(directory: &Path) -> ServeArgs {
    ServeArgs {
        listen: Some(([127, 0, 0, 1], 0).into()),
        engine: Some(EngineKind::Sim),
        tls_cert: Some(directory.join("tls.crt")),
        tls_key: Some(directory.join("tls.key")),
        ..ServeArgs::default()
    }
}

async fn start(directory: &Path) -> Running {
    let config = Config::load(&args(directory), Some(&directory.join("data"))).unwrap();
    Running::start(&config).await.unwrap()
}

/// `perennial pod ls` on a server, and everything it printed.
async fn pod_ls(url: &str, directory: &Path, more: &[&str]) -> (Exit, String) {
    let words: Vec<&str> = ["pod", "ls"].iter().chain(more).copied().collect();
    command(url, &directory.join("data"), &words, None).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_come_by_tls_and_trust_only_the_authority_they_name() {
    let directory = tempfile::tempdir().unwrap();
    let home = directory.path();
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    ours.sign(home);
    let (ca, wrong) = (ours.write(&home.join("ca.pem")), theirs.write(&home.join("wrong.pem")));
    let server = start(home).await;
    let url = server.url();
    assert!(url.starts_with("https://127.0.0.1:"), "{url}");

    let (exit, text) = pod_ls(&url, home, &["--ca-file", ca.to_str().unwrap()]).await;
    assert_eq!((exit, text.trim()), (Exit::Done, "no pods"));

    for stranger in [&["--ca-file", wrong.to_str().unwrap()][..], &[]] {
        let (exit, text) = pod_ls(&url, home, stranger).await;
        assert_eq!(exit, Exit::Unavailable, "{stranger:?}: {text}");
        assert!(text.contains("certificate") && text.contains("--ca-file"), "{stranger:?}: {text}");
    }

    // Whoever forgets TLS gets nothing but a broken connection, and is told what to write.
    let (exit, text) = pod_ls(&url.replace("https", "http"), home, &[]).await;
    assert_eq!(exit, Exit::Unavailable, "{text}");
    assert!(text.contains("https://"), "{text}");

    for (file, content) in [("empty.pem", ""), ("text.pem", "no certificate")] {
        std::fs::write(home.join(file), content).unwrap();
        let (exit, text) = pod_ls(&url, home, &["--ca-file", home.join(file).to_str().unwrap()]).await;
        assert_eq!(exit, Exit::Usage, "{text}");
        assert!(text.contains(file), "{text}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_says_nothing_keeps_nobody_waiting() {
    let directory = tempfile::tempdir().unwrap();
    let home = directory.path();
    let ours = Authority::new("ours");
    ours.sign(home);
    let ca = ours.write(&home.join("ca.pem"));
    let server = start(home).await;
    let silent = std::net::TcpStream::connect(server.address).unwrap();
    let (exit, text) = pod_ls(&server.url(), home, &["--ca-file", ca.to_str().unwrap()]).await;
    assert_eq!(exit, Exit::Done, "{text}");
    drop(silent);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replaced_certificate_is_shown_and_a_broken_one_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let home = directory.path();
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    old.sign(home);
    let (old_ca, new_ca) = (old.write(&home.join("old.pem")), new.write(&home.join("new.pem")));
    let server = start(home).await;
    let certificate = server.certificate.clone().unwrap();
    assert_eq!(certificate.reread().unwrap(), Reread::Unchanged);

    std::fs::write(home.join("tls.key"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
    assert!(matches!(certificate.reread(), Err(TlsError::Pair { .. })));
    let (exit, text) = pod_ls(&server.url(), home, &["--ca-file", old_ca.to_str().unwrap()]).await;
    assert_eq!(exit, Exit::Done, "what was good stays: {text}");

    new.sign(home);
    assert_eq!(certificate.reread().unwrap(), Reread::Replaced);
    let (exit, text) = pod_ls(&server.url(), home, &["--ca-file", new_ca.to_str().unwrap()]).await;
    assert_eq!(exit, Exit::Done, "{text}");
    let (exit, _) = pod_ls(&server.url(), home, &["--ca-file", old_ca.to_str().unwrap()]).await;
    assert_eq!(exit, Exit::Unavailable);
    server.stop().await;
}

#[tokio::test]
async fn files_that_are_no_certificate_are_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let home = directory.path();
    let config = Config::load(&args(home), Some(&home.join("data"))).unwrap();
    let refused = async || match Running::start(&config).await {
        Err(error @ ServeError::Tls(_)) => format!("{error}; {}", error.hint()),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it started"),
    };
    let text = refused().await;
    assert!(text.contains("tls.crt") && text.contains("No such file"), "{text}");
    Authority::new("a").sign(home);
    std::fs::write(home.join("tls.key"), "nothing").unwrap();
    let text = refused().await;
    assert!(text.contains("tls.key: holds no private key"), "{text}");
    std::fs::write(home.join("tls.crt"), "nothing").unwrap();
    let text = refused().await;
    assert!(text.contains("tls.crt: holds no certificate"), "{text}");
    assert!(!home.join("data").exists(), "nothing was touched");
}

/// The real program, as `perennial serve` with these arguments.
pub fn program(data: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_perennial"));
    command.env_clear().args(["serve", "--engine", "sim", "--data-dir"]).arg(data).args(arguments);
    command
}

/// A process that does not outlive its test.
pub struct Child(pub std::process::Child);

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn plaintext_for_others_is_refused_with_the_remedy() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let done = program(&data, &["--listen", "0.0.0.0:0"]).output().unwrap();
    let text = String::from_utf8(done.stderr).unwrap();
    assert_eq!(done.status.code(), Some(i32::from(Exit::Invalid.code())), "{text}");
    for word in ["0.0.0.0:0", "no TLS", "--tls-cert", "--tls-key", "127.0.0.1", "--allow-plaintext"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    assert!(!data.exists(), "nothing was touched");
}

#[test]
fn the_program_serves_tls_to_others_and_reads_the_certificate_again_on_sighup() {
    let directory = tempfile::tempdir().unwrap();
    let home = directory.path();
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    old.sign(home);
    let arguments = ["--listen", "0.0.0.0:0", "--tls-cert", "tls.crt", "--tls-key", "tls.key"];
    let mut command = program(&home.join("data"), &arguments);
    command.current_dir(home).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = Child(command.spawn().unwrap());
    let server = &mut running.0;
    let mut ready = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    let port = ready.trim().trim_end_matches("\"}").rsplit(':').next().unwrap().to_owned();
    assert!(ready.starts_with("{\"listening\":\"https://0.0.0.0:"), "{ready}");

    new.sign(home);
    let ca = new.write(&home.join("new.pem"));
    let pid = rustix::process::Pid::from_raw(i32::try_from(server.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    let mut lines = BufReader::new(server.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("the certificate was replaced")));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let url = format!("https://127.0.0.1:{port}");
    let (exit, text) = runtime.block_on(pod_ls(&url, home, &["--ca-file", ca.to_str().unwrap()]));
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(server.wait().unwrap().success());
    assert_eq!(exit, Exit::Done, "{text}");
}
