//! Command lines against the API of a desk, over HTTP.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use perennial::cli::{Exit, Interrupt, Out, Output, Session, run_from};

use crate::desk::{Desk, TOKEN};

#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

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
        let session = Session {
            output: Output::Table,
            now: || "2026-01-10T12:00:00Z".parse::<Timestamp>().unwrap(),
            token: Some(TOKEN.to_owned()),
            pause: Duration::ZERO,
            silence: Duration::from_secs(90),
            tries: 3,
            interrupt: Interrupt::Notify(Arc::default()),
        };
        let (stdout, stderr) = (Buffer::default(), Buffer::default());
        let mut out = Out::captured(Box::new(stdout.clone()), Box::new(stderr.clone()), None);
        let exit = run_from(&[&["perennial", "--server", &self.0], arguments].concat(), session, &mut out).await;
        let stderr = String::from_utf8(stderr.0.lock().unwrap().clone()).unwrap();
        let stdout = stdout.0.lock().unwrap().clone();
        Ran { exit, stdout, stderr }
    }
}
