//! Addresses of engines behind SSH, and how `ssh` is called for one.

use std::path::Path;

use perennial_core::engine::EngineError;

use super::client::rejected;

/// How such an address begins.
pub(super) const SCHEME: &str = "ssh://";
/// Where the other side has the engine's socket unless the address says so.
const SOCKET: &str = "/var/run/docker.sock";

/// What nobody overrides, since ssh takes the first value it is given: it asks nobody, trusts only hosts it knows, notices
/// a dead connection within 15 seconds, and is one process that ends with its connection.
const OPTIONS: [&str; 10] = [
    "BatchMode=yes",
    "StrictHostKeyChecking=yes",
    "ExitOnForwardFailure=yes",
    "ServerAliveInterval=5",
    "ServerAliveCountMax=3",
    "ConnectTimeout=15",
    "StreamLocalBindMask=0177",
    "StreamLocalBindUnlink=yes",
    "ControlMaster=no",
    "ControlPath=none",
];

/// `ssh://[user@]host[:port][/path/of/the/socket]`, with nothing in it that `ssh` could take for something else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    user: Option<String>,
    host: String,
    port: Option<u16>,
    socket: String,
}

impl Address {
    /// Takes an address apart. What it says of a bad one never shows the address, which may hold a password.
    pub(super) fn parse(url: &str) -> Result<Self, EngineError> {
        let rest = url.strip_prefix(SCHEME).ok_or_else(|| wrong("it does not begin with ssh://"))?;
        if rest.contains(['?', '#']) {
            return Err(wrong("it takes no query and no fragment"));
        }
        let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        let (user, place) = match authority.split_once('@') {
            Some((user, place)) => (Some(user), place),
            None => (None, authority),
        };
        if user.is_some_and(|u| u.contains(':')) {
            return Err(wrong("it takes no password, ssh logs in with a key"));
        }
        if user.is_some_and(|u| !is_name(u)) {
            return Err(wrong("the user is empty, begins with '-', or has other characters than A-Z a-z 0-9 . _ -"));
        }
        let (host, port) = host_and_port(place)?;
        let socket = if matches!(path, "" | "/") { SOCKET } else { path };
        if !is_plain(socket) || socket.ends_with('/') {
            return Err(wrong(
                "the path of the socket has other characters than A-Z a-z 0-9 / . _ - +, or ends with '/'",
            ));
        }
        Ok(Self { user: user.map(str::to_owned), host, port, socket: socket.to_owned() })
    }

    /// Whom to log in as, and where.
    pub(super) fn destination(&self) -> String {
        self.user.as_ref().map_or_else(|| self.host.clone(), |user| format!("{user}@{}", self.host))
    }

    /// How somebody tries by hand whether it works.
    pub(super) fn trial(&self) -> String {
        let port = self.port.map(|port| format!("-p {port} ")).unwrap_or_default();
        format!("ssh {port}{} true", self.destination())
    }

    /// The arguments of the `ssh` that forwards this local socket; `more` are options of whoever runs the server.
    pub(super) fn arguments(&self, local: &Path, more: &[String]) -> Result<Vec<String>, EngineError> {
        // ssh expands what looks like its tokens and variables, and a colon ends the path.
        let shown = local.display();
        let local = local.to_str().filter(|path| is_plain(path)).ok_or_else(|| {
            rejected(format!("ssh cannot make a socket at {shown}: set TMPDIR to a directory with a plain name"))
        })?;
        let mut arguments = vec!["-N".to_owned(), "-T".to_owned()];
        for option in OPTIONS.into_iter().chain(more.iter().map(String::as_str)) {
            if !is_option(option) {
                let problem = format!("docker_ssh_options: {option:?} is no option of ssh");
                return Err(rejected(format!("{problem}; write NAME=VALUE, such as IdentityFile=/root/.ssh/engine")));
            }
            arguments.extend(["-o".to_owned(), option.to_owned()]);
        }
        if let Some(port) = self.port {
            arguments.extend(["-p".to_owned(), port.to_string()]);
        }
        arguments.extend(["-L".to_owned(), format!("{local}:{}", self.socket), "--".to_owned(), self.destination()]);
        Ok(arguments)
    }
}

fn host_and_port(place: &str) -> Result<(String, Option<u16>), EngineError> {
    let (host, port) = match place.strip_prefix('[').and_then(|p| p.split_once(']')) {
        Some((address, rest)) if address.parse::<std::net::Ipv6Addr>().is_ok() => {
            let port = rest.strip_prefix(':');
            if port.is_none() && !rest.is_empty() {
                return Err(wrong("after the address in brackets comes something else than a port"));
            }
            (address, port)
        }
        Some(_) => return Err(wrong("what is in brackets is no IPv6 address")),
        None => {
            let (host, port) = place.split_once(':').map_or((place, None), |(host, port)| (host, Some(port)));
            if !is_name(host) {
                return Err(wrong(
                    "the host is empty, begins with '-', or has other characters than A-Z a-z 0-9 . _ -",
                ));
            }
            (host, port)
        }
    };
    let number = |port: &str| {
        let digits = port.bytes().all(|b| b.is_ascii_digit());
        port.parse::<u16>()
            .ok()
            .filter(|n| digits && *n != 0)
            .ok_or_else(|| wrong("the port is no number from 1 to 65535"))
    };
    Ok((host.to_owned(), port.map(number).transpose()?))
}

fn wrong(problem: &str) -> EngineError {
    rejected(format!(
        "docker_host is no usable address: {problem}; write ssh://USER@HOST:PORT or ssh://NAME, and put the rest below Host \
         NAME in ~/.ssh/config"
    ))
}

/// Whether it can only be the name of a user or a host.
fn is_name(text: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    !text.is_empty() && !text.starts_with('-') && text.chars().all(good)
}

/// Whether it is an absolute path that ssh takes as it is.
fn is_plain(path: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-' | '+');
    path.starts_with('/') && path.chars().all(good)
}

fn is_option(text: &str) -> bool {
    text.split_once('=').is_some_and(|(name, value)| {
        let named = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric());
        named && !value.is_empty() && !text.contains(char::is_control)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(url: &str) -> (Option<String>, String, Option<u16>, String) {
        let address = Address::parse(url).expect(url);
        (address.user, address.host, address.port, address.socket)
    }

    #[test]
    fn ssh_addresses_are_taken_apart() {
        let at = |user: Option<&str>, host: &str, port, socket: &str| {
            (user.map(str::to_owned), host.to_owned(), port, socket.to_owned())
        };
        assert_eq!(parsed("ssh://engine"), at(None, "engine", None, SOCKET));
        assert_eq!(parsed("ssh://engine/"), at(None, "engine", None, SOCKET));
        assert_eq!(parsed("ssh://root@10.0.0.7:2222"), at(Some("root"), "10.0.0.7", Some(2222), SOCKET));
        assert_eq!(parsed("ssh://me@h/run/user/1000/docker.sock").3, "/run/user/1000/docker.sock");
        assert_eq!(parsed("ssh://me@[fe80::1]:22"), at(Some("me"), "fe80::1", Some(22), SOCKET));
        assert_eq!(parsed("ssh://[::1]"), at(None, "::1", None, SOCKET));
    }

    #[test]
    fn ssh_addresses_with_anything_odd_are_refused() {
        let odd = [
            ("ssh://", "host"),
            ("ssh://@host", "user"),
            ("ssh://root@", "host"),
            ("ssh://-oProxyCommand=x", "host"),
            ("ssh://-l@host", "user"),
            ("ssh://root:secret@host", "password"),
            ("ssh://root:@host", "password"),
            ("ssh://a@b@host", "host"),
            ("ssh://host:", "port"),
            ("ssh://host:0", "port"),
            ("ssh://host:65536", "port"),
            ("ssh://host:+22", "port"),
            ("ssh://host:22:22", "port"),
            ("ssh://host?x=y", "query"),
            ("ssh://host/a#b", "fragment"),
            ("ssh://ho st", "host"),
            ("ssh://ho%st", "host"),
            ("ssh://[::1", "host"),
            ("ssh://[host]", "brackets"),
            ("ssh://[::1]22", "brackets"),
            ("ssh://host/a:b", "path"),
            ("ssh://host/%h", "path"),
            ("ssh://host/${HOME}", "path"),
            ("ssh://host/run/", "path"),
            ("SSH://host", "begin"),
        ];
        for (url, what) in odd {
            let Err(EngineError::Rejected { problem }) = Address::parse(url) else { panic!("{url} is taken") };
            let named = problem.starts_with("docker_host ") && problem.contains("write ssh://");
            assert!(named && problem.contains(what) && !problem.contains("secret"), "{url}: {problem}");
        }
    }

    #[test]
    fn ssh_is_called_with_what_nobody_overrides_before_anything_else() {
        let address = Address::parse("ssh://root@host:2222/run/other.sock").expect("parse");
        let more = ["StrictHostKeyChecking=no".to_owned(), "IdentityFile=/a b".to_owned()];
        let arguments = address.arguments(Path::new("/tmp/x/s"), &more).expect("arguments");
        assert_eq!(arguments[..4], ["-N", "-T", "-o", "BatchMode=yes"]);
        let place = |what: &str| arguments.iter().position(|a| a == what).expect(what);
        assert!(place("StrictHostKeyChecking=yes") < place("StrictHostKeyChecking=no"));
        assert_eq!(arguments[place("IdentityFile=/a b") - 1], "-o");
        let end = ["-p", "2222", "-L", "/tmp/x/s:/run/other.sock", "--", "root@host"];
        assert!(arguments.ends_with(&end.map(str::to_owned)), "{arguments:?}");
        let plain = Address::parse("ssh://host").expect("parse").arguments(Path::new("/s"), &[]).expect("arguments");
        assert!(!plain.contains(&"-p".to_owned()) && plain.ends_with(&["--", "host"].map(str::to_owned)), "{plain:?}");
    }

    #[test]
    fn ssh_options_and_places_it_would_read_otherwise_are_refused() {
        let address = Address::parse("ssh://host").expect("parse");
        for option in ["", "=x", "IdentityFile", "IdentityFile=", "-oA=b", "Identity File=x", "A=b\nC=d"] {
            let refused = address.arguments(Path::new("/s"), &[option.to_owned()]);
            assert!(
                matches!(refused, Err(EngineError::Rejected { problem }) if problem.contains("docker_ssh_options"))
            );
        }
        for place in ["/a:b", "/%h", "/${HOME}", "relative", "/a b"] {
            let refused = address.arguments(Path::new(place), &[]);
            assert!(matches!(refused, Err(EngineError::Rejected { problem }) if problem.contains("TMPDIR")), "{place}");
        }
    }
}
