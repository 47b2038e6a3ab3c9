//! Whether a pod's program works: a page, a port, or a program in its container.
//!
//! Pages and ports are asked for from this host, so that no image needs a tool for it. Only the address that the engine gave the
//! container on its tenant's network is connected to, and only when the container is of this host: the same address may be anybody's
//! elsewhere. Of an answer the first line is read and no more; a redirect is an answer like any other.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use perennial_core::engine::{EngineError, Program, ProgramEnd};
use perennial_core::health::{Answer, Probe};
use perennial_core::progress::Progress;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::DockerEngine;
use super::container::Seen;
use super::program::{is_not_there, is_of_this_host};

/// The mark of a program that is asked for a pod's health.
const MARK: &str = "health";
/// Longest first line of an answer, in bytes.
const LINE_MAX: u64 = 256;
/// Where nothing is sent to: the discard service's (RFC 863).
const NO_PORT: u16 = 9;

impl DockerEngine {
    pub(super) async fn health_probe(&self, id: &str, probe: &Probe, within: Duration) -> Result<Answer, EngineError> {
        let (port, path) = match probe {
            Probe::Exec { command } => return self.ask_program(id, command, within).await,
            Probe::Tcp { port } => (*port, None),
            Probe::Http { port, path } => (*port, Some(path.as_str())),
        };
        let seen = self.running(id).await?;
        let pid = seen.inspected.state.as_ref().and_then(|state| state.pid).unwrap_or_default();
        if !is_of_this_host(&seen.id, pid).await? {
            let why = "its processes are not seen on this host, so that its address may be somebody else's here";
            return Ok(Answer::Unasked(why.to_owned()));
        }
        let Some((address, gateway)) = own_address(&seen) else {
            return Ok(Answer::Unasked("the container has no address of its own".to_owned()));
        };
        // The same address may be somebody else's here: in another network namespace than the engine's there is another network, or none.
        if self.info.rootless || !is_of_this_network(gateway)? {
            let why = "the engine's networks are not those of this server, so its containers cannot be reached";
            return Ok(Answer::Unasked(why.to_owned()));
        }
        let asked = ask(SocketAddr::new(address, port), path);
        tokio::time::timeout(within, asked).await.unwrap_or_else(|_| Ok(Answer::Bad(late(within))))
    }

    async fn ask_program(&self, id: &str, command: &[String], within: Duration) -> Result<Answer, EngineError> {
        let program = Program { mark: MARK.to_owned(), command: command.to_vec(), user: None, within };
        let ran = match self.run_program(id, &program, &Progress::default()).await {
            Ok(ran) => ran,
            Err(EngineError::Rejected { problem }) if is_not_there(&problem) => return Ok(Answer::Bad(problem)),
            Err(error) => return Err(error),
        };
        Ok(match ran.end {
            ProgramEnd::Exited(0) => Answer::Good,
            ProgramEnd::Exited(code) => Answer::Bad(format!("status {code}: {}", ran.output.trim())),
            ProgramEnd::TimedOut(_) => Answer::Bad(late(within)),
            ProgramEnd::Cancelled(_) | ProgramEnd::ContainerEnded => {
                return Err(EngineError::Conflict { problem: format!("container {id} ended while it was asked") });
            }
        })
    }
}

fn late(within: Duration) -> String {
    format!("no answer in {} s", within.as_secs())
}

/// The container's address on the network that it was made on, and that of the engine's host there.
fn own_address(seen: &Seen) -> Option<(IpAddr, IpAddr)> {
    let network = seen.inspected.host_config.as_ref()?.network_mode.as_deref()?;
    let networks = seen.inspected.network_settings.as_ref()?.networks.as_ref()?;
    let endpoint = networks.get(network)?;
    Some((endpoint.ip_address.as_deref()?.parse().ok()?, endpoint.gateway.as_deref()?.parse().ok()?))
}

/// Whether an engine's host has this address where this process is: what is sent to an own address is sent from it. Nothing is.
fn is_of_this_network(gateway: IpAddr) -> Result<bool, EngineError> {
    let any: IpAddr = if gateway.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let sent_from = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((gateway, NO_PORT))?;
        socket.local_addr()
    });
    match sent_from {
        Ok(from) => Ok(from.ip() == gateway),
        Err(error) if matches!(error.kind(), ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable) => Ok(false),
        Err(error) => Err(not_put("look for the network", &error)),
    }
}

/// What keeps a question from being put is of this server, and says nothing about the pod.
fn not_put(what: &str, error: &std::io::Error) -> EngineError {
    EngineError::Transient { problem: format!("{what}: {error}") }
}

/// Whether this is what a pod does to a connection, and not what this server lacks.
fn is_of_the_pod(error: &std::io::Error) -> bool {
    use ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionRefused, ConnectionReset, TimedOut, UnexpectedEof};
    let kind = error.kind();
    matches!(kind, BrokenPipe | ConnectionAborted | ConnectionRefused | ConnectionReset | TimedOut | UnexpectedEof)
}

/// Connects, and asks for a page if there is a path.
async fn ask(address: SocketAddr, path: Option<&str>) -> Result<Answer, EngineError> {
    let told = |what: &str, error: &std::io::Error| {
        if is_of_the_pod(error) { Ok(Answer::Bad(format!("{what}: {error}"))) } else { Err(not_put(what, error)) }
    };
    let mut stream = match TcpStream::connect(address).await {
        Ok(stream) => stream,
        Err(error) => return told(&format!("port {}", address.port()), &error),
    };
    let Some(path) = path else { return Ok(Answer::Good) };
    match first_line(&mut stream, address, path).await {
        Ok(line) => Ok(judged(&line)),
        Err(error) => told(path, &error),
    }
}

async fn first_line(stream: &mut TcpStream, address: SocketAddr, path: &str) -> std::io::Result<Vec<u8>> {
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: perennial-health\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = stream.take(LINE_MAX);
    let mut line = Vec::new();
    let mut piece = [0; 64];
    while !line.contains(&b'\n') {
        let read = answer.read(&mut piece).await?;
        if read == 0 {
            break;
        }
        line.extend_from_slice(&piece[..read]);
    }
    Ok(line)
}

/// What a first line of an answer says.
fn judged(line: &[u8]) -> Answer {
    let text = String::from_utf8_lossy(line);
    let first = text.lines().next().unwrap_or_default();
    let mut words = first.split(' ');
    let is_http = words.next().is_some_and(|version| version.starts_with("HTTP/1."));
    let status = words.next().filter(|_| is_http).and_then(|status| status.parse::<u16>().ok());
    match status {
        Some(200..=399) => Answer::Good,
        Some(_) => Answer::Bad(format!("it answered {}", first.trim())),
        None => Answer::Bad("what answers does not speak HTTP".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_decides() {
        for good in ["HTTP/1.1 200 OK\r\n", "HTTP/1.0 204\r\nX: y", "HTTP/1.1 302 Found\r\n", "HTTP/1.1 399 x"] {
            assert_eq!(judged(good.as_bytes()), Answer::Good, "{good}");
        }
        assert_eq!(judged(b"HTTP/1.1 503 Busy\r\n"), Answer::Bad("it answered HTTP/1.1 503 Busy".to_owned()));
        for bad in ["", "SSH-2.0-x\r\n", "HTTP/1.1\r\n", "HTTP/2 200", "200 OK", "HTTP/1.1 99999 x", "\u{fffd}"] {
            assert!(matches!(judged(bad.as_bytes()), Answer::Bad(_)), "{bad}");
        }
    }

    #[tokio::test]
    async fn no_more_is_read_than_the_first_line() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let served = async {
            let (mut peer, _) = listener.accept().await.unwrap();
            // Never ends, and never has a line's end.
            while peer.write_all(&[b'x'; 4096]).await.is_ok() {}
        };
        let (answer, ()) = tokio::join!(ask(address, Some("/")), served);
        assert_eq!(answer, Ok(Answer::Bad("what answers does not speak HTTP".to_owned())));
        let nobody = ask(address, None);
        drop(listener);
        assert!(matches!(nobody.await, Ok(Answer::Bad(problem)) if problem.starts_with("port ")));
    }

    #[tokio::test]
    async fn what_this_server_lacks_is_not_the_pods_fault() {
        // No route leads there from anywhere: a multicast address takes no connection.
        let asked = ask("224.0.0.1:80".parse().unwrap(), Some("/")).await;
        assert!(
            matches!(&asked, Err(EngineError::Transient { problem }) if problem.starts_with("port 80")),
            "{asked:?}"
        );
        let of = |kind: ErrorKind| is_of_the_pod(&kind.into());
        assert!(of(ErrorKind::ConnectionRefused) && of(ErrorKind::ConnectionReset) && of(ErrorKind::UnexpectedEof));
        for kind in
            [ErrorKind::NetworkUnreachable, ErrorKind::HostUnreachable, ErrorKind::PermissionDenied, ErrorKind::Other]
        {
            assert!(!of(kind), "{kind:?}");
        }
        for raw in [rustix::io::Errno::MFILE, rustix::io::Errno::NOBUFS, rustix::io::Errno::ADDRNOTAVAIL] {
            assert!(!is_of_the_pod(&raw.into()), "{raw:?}");
        }
    }

    #[test]
    fn an_address_of_another_network_is_seen() {
        assert_eq!(is_of_this_network("127.0.0.1".parse().unwrap()), Ok(true));
        // Set aside for documents (RFC 5737): nobody has it.
        assert_eq!(is_of_this_network("192.0.2.1".parse().unwrap()), Ok(false));
    }
}
