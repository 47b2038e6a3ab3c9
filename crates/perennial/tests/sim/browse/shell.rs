//! Command lines against the API of a desk, over HTTP.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use perennial::cli::{Exit, Interrupt, Out, Output, Session, run_from};

use super::desk::{Desk, TOKEN};

#[derive(Clone, Default)]
pub struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Buffer {
    fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }

    /// Waits until this was printed.
    pub async fn shows(&self, text: &str) {
        while !String::from_utf8_lossy(&self.bytes()).contains(text) {
            tokio::task::yield_now().await;
        }
    }
}

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub struct Ran {
    pub exit: Exit,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Ran {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }
}

/// Serves the desk's API, and runs command lines against it.
pub struct Shell(String);

impl Shell {
    pub async fn new(desk: &Desk) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = desk.router.clone();
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self(format!("http://{address}"))
    }

    pub async fn run(&self, arguments: &[&str]) -> Ran {
        self.run_with(arguments, Interrupt::Notify(Arc::default()), &Buffer::default()).await
    }

    /// Runs a command line that can be interrupted, and whose output can be read meanwhile.
    pub async fn run_with(&self, arguments: &[&str], interrupt: Interrupt, stdout: &Buffer) -> Ran {
        let session = Session {
            output: Output::Table,
            now: || "2026-01-10T12:00:00Z".parse::<Timestamp>().unwrap(),
            token: Some(TOKEN.to_owned()),
            pause: Duration::ZERO,
            silence: Duration::from_secs(90),
            tries: 3,
            interrupt,
        };
        let stderr = Buffer::default();
        let mut out = Out::captured(Box::new(stdout.clone()), Box::new(stderr.clone()), None);
        let exit = run_from(&[&["perennial", "--server", &self.0], arguments].concat(), session, &mut out).await;
        Ran { exit, stdout: stdout.bytes(), stderr: String::from_utf8(stderr.bytes()).unwrap() }
    }
}
