//! Key files: what a password opens, and what opening may cost.

use jiff::Timestamp;

use super::to_json;
use crate::backend::{Backend, FileKind};
use crate::crypto::Key;
use crate::error::{Error, Result};
use crate::id::Id;
use crate::password::{KeyCost, Password};
use crate::wire::{KeyFile, MacKey, MasterKey};

/// Memory a foreign key file may make us use, in bytes.
const MAX_KEY_MEMORY: u64 = 1 << 30;

/// A key in its file form.
pub(crate) fn master_key(key: &Key) -> MasterKey {
    MasterKey { mac: MacKey { k: key.mac_k.to_vec(), r: key.mac_r.to_vec() }, encrypt: key.encrypt.to_vec() }
}

/// The key of this file form; none when a part has the wrong size.
pub(crate) fn key_of(master: MasterKey) -> Option<Key> {
    let (encrypt, k, r) =
        (master.encrypt.try_into().ok()?, master.mac.k.try_into().ok()?, master.mac.r.try_into().ok()?);
    Some(Key::new(encrypt, k, r))
}

pub(crate) fn wrap_key(key: &Key, password: &Password, cost: KeyCost) -> Result<Vec<u8>> {
    let salt: [u8; 64] = rand::random();
    let wrapping = Key::derive(password.reveal(), &salt, cost.log_n(), 8, 1)?;
    to_json(&KeyFile {
        created: Timestamp::now(),
        username: "perennial".into(),
        hostname: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        kdf: "scrypt".into(),
        n: 1 << cost.log_n(),
        r: 8,
        p: 1,
        salt: salt.to_vec(),
        data: wrapping.seal(&to_json(&master_key(key))?),
    })
}

/// The key that this password opens, of several the one that the config is sealed with: a key of an interrupted `init` is not.
pub(crate) fn find_key(backend: &dyn Backend, password: &Password, config: &[u8]) -> Result<Key> {
    let mut trouble = None;
    let mut stray = None;
    for info in backend.list(FileKind::Key)? {
        match try_key(backend, info.id, password) {
            Ok(Some(key)) if key.open(config).is_ok() => return Ok(key),
            Ok(Some(key)) => stray = Some(key),
            Ok(None) => {}
            // Another key may open; when none does, "damaged" or "unreachable" must not read "wrong password".
            Err(e) => trouble = Some(e),
        }
    }
    // With it the config reads as damaged, which it is then.
    stray.map_or_else(|| Err(trouble.unwrap_or(Error::WrongPassword)), Ok)
}

/// The logarithm of the cost of a key file's derivation; `None` when it is unknown, or costs too much.
///
/// Nothing vouches for a key file: whoever can write into a store chooses these numbers.
pub(crate) fn affordable(file: &KeyFile) -> Option<u8> {
    let fits = |blocks: u64| blocks.checked_mul(u64::from(file.r) * 128).is_some_and(|bytes| bytes <= MAX_KEY_MEMORY);
    // One table of `n` blocks, and `p` blocks to begin with.
    let affordable = fits(file.n) && fits(u64::from(file.p));
    if file.kdf != "scrypt" || !file.n.is_power_of_two() || !affordable || file.p > 64 {
        return None;
    }
    // At most 30: bounded by the memory above.
    u8::try_from(file.n.trailing_zeros()).ok()
}

pub(crate) fn try_key(backend: &dyn Backend, id: Id, password: &Password) -> Result<Option<Key>> {
    let data = backend.read(FileKind::Key, id)?;
    let damaged = |reason: &str| Error::damaged(FileKind::Key, id, reason);
    if Id::of(&data) != id {
        return Err(damaged("its hash is not its name"));
    }
    let file: KeyFile = serde_json::from_slice(&data).map_err(|e| damaged(&e.to_string()))?;
    let log_n = affordable(&file).ok_or_else(|| damaged("unsupported key derivation"))?;
    let wrapping = Key::derive(password.reveal(), &file.salt, log_n, file.r, file.p)?;
    let Ok(master) = wrapping.open(&file.data) else { return Ok(None) };
    let master: MasterKey = serde_json::from_slice(&master).map_err(|e| damaged(&e.to_string()))?;
    key_of(master).map(Some).ok_or_else(|| damaged("a key has the wrong size"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_file_cannot_make_us_use_all_memory() {
        let file = |n: u64, r: u32, p: u32| KeyFile {
            created: Timestamp::UNIX_EPOCH,
            username: String::new(),
            hostname: String::new(),
            kdf: "scrypt".into(),
            n,
            r,
            p,
            salt: vec![],
            data: vec![],
        };
        assert_eq!(affordable(&file(1 << 15, 8, 1)), Some(15), "restic's own numbers");
        // The table is small in each of the last two, and what it begins with is not.
        for (n, r, p) in [(3, 8, 1), (0, 8, 1), (1 << 24, 8, 1), (2, 1 << 22, 64), (1, 1 << 22, 3), (2, 8, 65)] {
            assert_eq!(affordable(&file(n, r, p)), None, "{n} {r} {p}");
        }
        assert_eq!(affordable(&KeyFile { kdf: "other".into(), ..file(2, 8, 1) }), None);
    }
}
