//! Which machine a pod is: machine-id and ssh host keys. A clone gets its own (D12).
//!
//! What is renewed is what the source wrote: a file that the image itself carries is every pod's of that image, and stays.
//! A machine-id that says "make me at the next boot" stays as well. The host name is the engine's.

use rand::Rng as _;
use ssh_key::rand_core::OsRng;
use ssh_key::{Algorithm, EcdsaCurve, LineEnding, PrivateKey, PublicKey};

/// Files with the machine's id.
pub(crate) const MACHINE_IDS: [&str; 2] = ["/etc/machine-id", "/var/lib/dbus/machine-id"];
/// Where ssh's host keys are.
pub(crate) const SSH_DIRECTORY: &str = "/etc/ssh";
/// Largest file that is taken for one of an identity.
pub(crate) const SIZE_MAX: u64 = 64 << 10;
/// Most files of host keys, private and public: an ssh server has a handful, and all of them are held in memory.
pub(crate) const HOST_KEYS_MAX: usize = 64;
/// Paths that the trail names; the rest is counted.
const TOLD_MAX: usize = 10;

/// A file of an identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Known {
    /// The path as the pod sees it.
    pub(crate) path: String,
    /// What it holds.
    pub(crate) content: Vec<u8>,
}

/// What becomes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Renewed {
    /// The path as the pod sees it.
    pub(crate) path: String,
    /// What it holds from now on; `None`: it is removed, because no such key can be made.
    pub(crate) content: Option<Vec<u8>>,
}

/// Whether a name in ssh's directory is a host key's, private or public.
pub(crate) fn is_host_key(name: &[u8]) -> bool {
    let name = name.strip_suffix(b".pub").unwrap_or(name);
    name.strip_prefix(b"ssh_host_").is_some_and(|rest| rest.len() > 4 && rest.ends_with(b"_key"))
}

/// Makes a new identity in the place of this one.
///
/// # Errors
/// Why a key could not be made.
pub(crate) fn renew(known: &[Known]) -> Result<Vec<Renewed>, ssh_key::Error> {
    let mut renewed = Vec::new();
    let mut id = [0_u8; 16];
    rand::rng().fill_bytes(&mut id);
    for file in known.iter().filter(|file| MACHINE_IDS.contains(&file.path.as_str())) {
        // Systemd makes the id of a machine that says so, or says nothing, when it boots.
        if !matches!(file.content.trim_ascii(), b"" | b"uninitialized") {
            let content = format!("{}\n", hex::encode(id)).into_bytes();
            renewed.push(Renewed { path: file.path.clone(), content: Some(content) });
        }
    }
    let content = |path: &str| known.iter().find(|file| file.path == path).map(|file| file.content.as_slice());
    let in_ssh: Vec<&Known> = known.iter().filter(|file| !MACHINE_IDS.contains(&file.path.as_str())).collect();
    for file in in_ssh.iter().filter(|file| !file.path.ends_with(".pub")) {
        let public = format!("{}.pub", file.path);
        let (private_text, public_text) = match algorithm(file) {
            Some(algorithm) => {
                let (private, public) = new_pair(algorithm, content(&public))?;
                (Some(private), Some(public))
            }
            None => (None, None),
        };
        renewed.push(Renewed { path: file.path.clone(), content: private_text });
        if content(&public).is_some() {
            renewed.push(Renewed { path: public, content: public_text });
        }
    }
    // The public half of a key that is not here any more is the source's all the same.
    for file in in_ssh.iter().filter(|file| file.path.strip_suffix(".pub").is_some_and(|key| content(key).is_none())) {
        renewed.push(Renewed { path: file.path.clone(), content: None });
    }
    Ok(renewed)
}

/// What was done, for the trail; `None` when there was nothing to do.
pub(crate) fn told(renewed: &[Renewed]) -> Option<String> {
    let paths = |made: bool| {
        let of = renewed.iter().filter(|file| file.content.is_some() == made);
        let of: Vec<&str> = of.map(|file| file.path.as_str()).collect();
        let more = of.len().saturating_sub(TOLD_MAX);
        let named = of.iter().take(TOLD_MAX).copied().collect::<Vec<_>>().join(", ");
        if more == 0 { named } else { format!("{named} and {more} more") }
    };
    let (made, removed) = (paths(true), paths(false));
    let made = (!made.is_empty()).then(|| format!("new: {made}"));
    let removed = (!removed.is_empty()).then(|| format!("removed, because no such key can be made: {removed}"));
    let told: Vec<String> = made.into_iter().chain(removed).collect();
    (!told.is_empty()).then(|| told.join("; "))
}

/// What kind a private key is, by what it holds and else by its name; `None` for one that cannot be made.
fn algorithm(file: &Known) -> Option<Algorithm> {
    let by_name = || match file.path.rsplit('/').next().unwrap_or_default() {
        "ssh_host_ed25519_key" => Some(Algorithm::Ed25519),
        "ssh_host_ecdsa_key" => Some(Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 }),
        _ => None,
    };
    let found = PrivateKey::from_openssh(&file.content).map(|key| key.algorithm()).ok().or_else(by_name)?;
    let can_be_made = match &found {
        Algorithm::Ed25519 => true,
        Algorithm::Ecdsa { curve } => matches!(curve, EcdsaCurve::NistP256 | EcdsaCurve::NistP384),
        _ => false,
    };
    can_be_made.then_some(found)
}

/// A new key's private and public file, with the comment of the old public one.
fn new_pair(algorithm: Algorithm, old_public: Option<&[u8]>) -> Result<(Vec<u8>, Vec<u8>), ssh_key::Error> {
    let mut key = PrivateKey::random(&mut OsRng, algorithm)?;
    let old = old_public.and_then(|text| std::str::from_utf8(text).ok());
    if let Some(old) = old.and_then(|text| PublicKey::from_openssh(text.trim()).ok()) {
        key.set_comment(old.comment());
    }
    let public = format!("{}\n", key.public_key().to_openssh()?).into_bytes();
    Ok((key.to_openssh(LineEnding::LF)?.as_bytes().to_vec(), public))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use super::*;

    fn file(path: &str, content: impl Into<Vec<u8>>) -> Known {
        Known { path: path.into(), content: content.into() }
    }

    fn of<'a>(renewed: &'a [Renewed], path: &str) -> Option<&'a Renewed> {
        renewed.iter().find(|r| r.path == path)
    }

    fn pair(algorithm: Algorithm, name: &str) -> [Known; 2] {
        let mut key = PrivateKey::random(&mut OsRng, algorithm).unwrap();
        key.set_comment("root@source");
        let private = key.to_openssh(LineEnding::LF).unwrap().as_bytes().to_vec();
        let path = format!("/etc/ssh/{name}");
        [file(&path, private), file(&format!("{path}.pub"), key.public_key().to_openssh().unwrap())]
    }

    #[test]
    fn names_of_host_keys_are_told_from_others() {
        for name in ["ssh_host_rsa_key", "ssh_host_ed25519_key.pub", "ssh_host_x_key"] {
            assert!(is_host_key(name.as_bytes()), "{name}");
        }
        for name in ["ssh_host_key", "ssh_host__key", "sshd_config", "ssh_host_rsa_key-cert.pub", "my_ssh_host_rsa_key"]
        {
            assert!(!is_host_key(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn a_machine_gets_one_new_id_and_one_that_waits_for_its_first_boot_stays() {
        let old = "0123456789abcdef0123456789abcdef\n";
        let renewed = renew(&[file(MACHINE_IDS[0], old), file(MACHINE_IDS[1], old)]).unwrap();
        let [first, second] = MACHINE_IDS.map(|path| of(&renewed, path).unwrap().content.clone().unwrap());
        assert_eq!(first, second);
        assert_ne!(first, old.as_bytes());
        let text = String::from_utf8(first).unwrap();
        assert!(text.len() == 33 && text.ends_with('\n') && text.trim().chars().all(|c| c.is_ascii_hexdigit()));
        assert_eq!(renew(&[file(MACHINE_IDS[0], "\n"), file(MACHINE_IDS[1], "uninitialized\n")]).unwrap(), []);
    }

    #[test]
    fn host_keys_are_renewed_in_kind_with_their_public_halves() {
        let kinds = [
            (Algorithm::Ed25519, "ssh_host_ed25519_key"),
            (Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 }, "ssh_host_ecdsa_key"),
            // The content counts, not the name.
            (Algorithm::Ecdsa { curve: EcdsaCurve::NistP384 }, "ssh_host_odd_key"),
        ];
        for (algorithm, name) in kinds {
            let known = pair(algorithm.clone(), name);
            let renewed = renew(&known).unwrap();
            let private = of(&renewed, &known[0].path).unwrap().content.clone().unwrap();
            let public = String::from_utf8(of(&renewed, &known[1].path).unwrap().content.clone().unwrap()).unwrap();
            let key = PrivateKey::from_openssh(&private).unwrap();
            assert_eq!(key.algorithm(), algorithm);
            assert_ne!(private, known[0].content);
            let public = PublicKey::from_openssh(public.trim()).unwrap();
            assert_eq!(public.key_data(), key.public_key().key_data());
            assert_eq!(public.comment(), "root@source");
        }
    }

    #[test]
    fn keys_that_cannot_be_made_are_removed_and_that_is_said() {
        let known = [
            file("/etc/ssh/ssh_host_rsa_key", "-----BEGIN RSA PRIVATE KEY-----\n"),
            file("/etc/ssh/ssh_host_rsa_key.pub", "ssh-rsa AAAA root@source"),
            file("/etc/ssh/ssh_host_dsa_key.pub", "ssh-dss AAAA root@source"),
            file("/etc/ssh/ssh_host_ed25519_key", "nonsense"),
        ];
        let renewed = renew(&known).unwrap();
        let removed: Vec<&str> = renewed.iter().filter(|r| r.content.is_none()).map(|r| r.path.as_str()).collect();
        assert_eq!(removed, [&*known[0].path, &*known[1].path, &*known[2].path]);
        assert!(of(&renewed, &known[3].path).unwrap().content.is_some());
        let text = told(&renewed).unwrap();
        assert!(text.starts_with("new: /etc/ssh/ssh_host_ed25519_key; removed, because"), "{text}");
        assert!(text.contains("rsa_key.pub"), "{text}");
        assert_eq!(told(&[]), None);
    }

    #[test]
    fn the_trail_names_some_files_and_counts_the_rest() {
        let key = |n| Renewed { path: format!("/etc/ssh/ssh_host_{n}_key"), content: None };
        let all: Vec<Renewed> = (0..TOLD_MAX + 2).map(key).collect();
        let text = told(&all).unwrap();
        assert!(text.ends_with("/etc/ssh/ssh_host_9_key and 2 more"), "{text}");
    }
}
