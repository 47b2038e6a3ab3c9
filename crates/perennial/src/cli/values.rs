//! Values as they are typed: `NAME=VALUE`, `NAME:PATH[:SIZE]`, `[HOST:]CONTAINER`.
//!
//! Only what cannot be put into a request at all is refused here; limits and names are the server's to judge.

use perennial_snapshots::Memory;

use super::human::parse_duration;
use crate::api::wire::{AdminAction, Backend, DeliveryState, OnStop, Port, Size, VolumeDeclaration};

/// Reads an environment variable.
///
/// # Errors
/// One sentence that says what is wrong.
pub fn env(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write NAME=VALUE".to_owned()),
    }
}

/// Reads a volume.
///
/// # Errors
/// One sentence that says what is wrong.
pub fn volume(text: &str) -> Result<VolumeDeclaration, String> {
    let mut parts = text.splitn(3, ':');
    let (Some(name), Some(path)) = (parts.next(), parts.next()) else {
        return Err("write NAME:PATH or NAME:PATH:SIZE, such as data:/data:250Mi".to_owned());
    };
    let size = parts.next().map(Size::parse).transpose()?;
    Ok(VolumeDeclaration { name: name.to_owned(), mount_path: path.to_owned(), size })
}

/// Reads a port.
///
/// # Errors
/// One sentence that says what is wrong.
pub fn port(text: &str) -> Result<Port, String> {
    let number = |text: &str| match text.parse() {
        Ok(0) | Err(_) => Err("write HOST:CONTAINER or CONTAINER, such as 8080:80; ports are 1 to 65535".to_owned()),
        Ok(port) => Ok(port),
    };
    match text.split_once(':') {
        Some((host, container)) => Ok(Port { container: number(container)?, host: Some(number(host)?) }),
        None => Ok(Port { container: number(text)?, host: None }),
    }
}

/// Reads a number of seconds.
///
/// # Errors
/// One sentence that says what is wrong.
pub fn seconds(text: &str) -> Result<u32, String> {
    u32::try_from(parse_duration(text)?.as_secs()).map_err(|_| format!("{text:?} is too long"))
}

/// Reads what work on a repository may keep in memory.
///
/// # Errors
/// What is wrong, and the least that works.
pub fn memory(text: &str) -> Result<Memory, String> {
    Memory::new(Size::parse(text)?.0).map_err(|error| format!("{error}: {}", error.hint()))
}

/// Reads a volume backend.
///
/// # Errors
/// One sentence that says what is wrong.
pub fn backend(text: &str) -> Result<Backend, String> {
    match text {
        "overlay" => Ok(Backend::Overlay),
        "docker" => Ok(Backend::Docker),
        _ => Err("write overlay or docker".to_owned()),
    }
}

/// Reads what an administrator does.
///
/// # Errors
/// One sentence that says what is wrong.
pub fn admin_action(text: &str) -> Result<AdminAction, String> {
    let all = [AdminAction::Restart, AdminAction::Start, AdminAction::Stop, AdminAction::Reset, AdminAction::Delete];
    let found = all.into_iter().find(|action| action.as_str() == text);
    found.ok_or_else(|| "write restart, start, stop, reset or delete".to_owned())
}

/// Reads how far a message is.
///
/// # Errors
/// One sentence that says what is wrong.
pub fn delivery_state(text: &str) -> Result<DeliveryState, String> {
    let all = [DeliveryState::Pending, DeliveryState::Sent, DeliveryState::Failed];
    let found = all.into_iter().find(|state| state.as_str() == text);
    found.ok_or_else(|| "write pending, sent or failed".to_owned())
}

/// Reads what a stop does.
///
/// # Errors
/// One sentence that says what is wrong.
pub fn on_stop(text: &str) -> Result<OnStop, String> {
    match text {
        "release" => Ok(OnStop::Release),
        "pause" => Ok(OnStop::Pause),
        _ => Err("write release or pause".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_people_write_them() {
        assert_eq!(env("A=b=c"), Ok(("A".to_owned(), "b=c".to_owned())));
        assert_eq!(env("A="), Ok(("A".to_owned(), String::new())));
        assert!(env("A").is_err() && env("=b").is_err());
        let data = volume("data:/data:1Mi").unwrap();
        assert_eq!((data.name.as_str(), data.mount_path.as_str(), data.size), ("data", "/data", Some(Size(1 << 20))));
        assert_eq!(volume("data:/data").unwrap().size, None);
        assert_eq!(memory("0.5Gi").map(Memory::bytes), Ok(512 << 20));
        assert!(memory("much").is_err());
        assert_eq!(
            memory("1Mi"),
            Err("1048576 bytes are too little memory to work with: give 128Mi or more".to_owned())
        );
        assert!(volume("/data").is_err() && volume("data:/data:1MB").is_err());
        assert_eq!(port("8080:80"), Ok(Port { container: 80, host: Some(8080) }));
        assert_eq!(port("80"), Ok(Port { container: 80, host: None }));
        for bad in ["", "0", "0:80", "80:0", "70000", "a:b", "1:2:3"] {
            assert!(port(bad).is_err(), "{bad}");
        }
    }
}
