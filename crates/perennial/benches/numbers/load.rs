//! Open-loop load: requests are due at fixed times, whatever the server does, and a latency counts from when its
//! request was due. A server that stalls is charged with every request that had to wait.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::table::Samples;

/// Connections that send; more than are ever busy at once while the server keeps up.
const CONNECTIONS: usize = 32;

/// Sends `rate` requests a second for `seconds`; answers the latencies and how many bytes an answer had.
pub fn get(address: &str, path: &str, token: &str, rate: u32, seconds: u32) -> (Samples, u64) {
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {token}\r\naccept: application/json\r\n\r\n"
    );
    let total = rate * seconds;
    let next = AtomicU32::new(0);
    let began = Instant::now() + Duration::from_millis(100);
    let mut samples = Samples::default();
    let mut bytes = 0;
    std::thread::scope(|scope| {
        let send = || {
            let mut connection = Connection::open(address);
            let mut done = Vec::new();
            let mut bytes = 0;
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= total {
                    return (done, bytes);
                }
                let due = began + Duration::from_secs(1) * number / rate;
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                bytes = connection.ask(&request);
                done.push(due.elapsed());
            }
        };
        let senders: Vec<_> = (0..CONNECTIONS).map(|_| scope.spawn(send)).collect();
        for sender in senders {
            let (done, size) = sender.join().unwrap();
            bytes = bytes.max(size);
            samples.extend(done);
        }
    });
    (samples, bytes)
}

struct Connection {
    stream: BufReader<TcpStream>,
    line: String,
    body: Vec<u8>,
}

impl Connection {
    fn open(address: &str) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream: BufReader::with_capacity(256 << 10, stream), line: String::new(), body: Vec::new() }
    }

    /// Sends a request and reads its answer whole; answers the size of its body.
    fn ask(&mut self, request: &str) -> u64 {
        self.stream.get_mut().write_all(request.as_bytes()).unwrap();
        let mut length = None;
        let status = self.read_line().to_owned();
        assert!(status.starts_with("HTTP/1.1 200"), "{status}");
        while !self.read_line().is_empty() {
            if let Some((name, value)) = self.line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = Some(value.trim().parse::<usize>().unwrap());
            }
        }
        self.body.resize(length.expect("an answer of known length"), 0);
        self.stream.read_exact(&mut self.body).unwrap();
        self.body.len() as u64
    }

    fn read_line(&mut self) -> &str {
        self.line.clear();
        self.stream.read_line(&mut self.line).unwrap();
        self.line.trim_end()
    }
}
