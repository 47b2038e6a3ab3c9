//! The small JSON files of the format: config, key, index, snapshot, lock.
//!
//! These types are restic's, field by field. Unknown fields are accepted, because newer versions of restic add some;
//! none of these files is ever rewritten from what was parsed, so nothing gets lost by that.

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::id::Id;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Config {
    pub(crate) version: u32,
    pub(crate) id: String,
    pub(crate) chunker_polynomial: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct KeyFile {
    pub(crate) created: Timestamp,
    #[serde(default)]
    pub(crate) username: String,
    #[serde(default)]
    pub(crate) hostname: String,
    pub(crate) kdf: String,
    #[serde(rename = "N")]
    pub(crate) n: u64,
    pub(crate) r: u32,
    pub(crate) p: u32,
    #[serde(with = "base64_bytes")]
    pub(crate) salt: Vec<u8>,
    #[serde(with = "base64_bytes")]
    pub(crate) data: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct MasterKey {
    pub(crate) mac: MacKey,
    #[serde(with = "base64_bytes")]
    pub(crate) encrypt: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct MacKey {
    #[serde(with = "base64_bytes")]
    pub(crate) k: Vec<u8>,
    #[serde(with = "base64_bytes")]
    pub(crate) r: Vec<u8>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct IndexFile {
    #[serde(default, deserialize_with = "null_is_default")]
    pub(crate) packs: Vec<IndexPack>,
    /// Packs that nothing needed when a prune looked, and that go after a while; restic does not see them, and rustic
    /// writes them the same way. Their blobs do not count as there.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub(crate) packs_to_delete: Vec<MarkedPack>,
}

/// A pack that is to be deleted.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct MarkedPack {
    pub(crate) id: Id,
    /// None when no index named the pack.
    pub(crate) blobs: Vec<IndexBlob>,
    /// When it was marked; absent: nobody knows, so it waits from the next prune on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) time: Option<Timestamp>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct IndexPack {
    pub(crate) id: Id,
    pub(crate) blobs: Vec<IndexBlob>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum BlobKind {
    Data,
    Tree,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IndexBlob {
    pub(crate) id: Id,
    #[serde(rename = "type")]
    pub(crate) kind: BlobKind,
    pub(crate) offset: u32,
    pub(crate) length: u32,
    /// Absent or zero when the blob is stored as it is.
    #[serde(default, skip_serializing_if = "no_length")]
    pub(crate) uncompressed_length: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn no_length(length: &u32) -> bool {
    *length == 0
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SnapshotFile {
    pub(crate) time: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) parent: Option<Id>,
    /// What the snapshot was called before somebody copied or changed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) original: Option<Id>,
    pub(crate) tree: Id,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(crate) paths: Vec<String>,
    #[serde(default)]
    pub(crate) hostname: String,
    #[serde(default)]
    pub(crate) username: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub(crate) tags: Vec<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) program_version: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) summary: Option<Summary>,
}

/// Statistics in a snapshot file, with the names restic 0.17 gave them and one of our own.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Summary {
    pub(crate) data_added_packed: u64,
    pub(crate) total_files_processed: u64,
    pub(crate) total_bytes_processed: u64,
    /// Ours: present only when the three counts describe the whole tree as this crate counts it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) perennial_dirs: Option<u64>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct LockFile {
    pub(crate) time: Timestamp,
    #[serde(default)]
    pub(crate) exclusive: bool,
    #[serde(default)]
    pub(crate) hostname: String,
    #[serde(default)]
    pub(crate) username: String,
    #[serde(default)]
    pub(crate) pid: i64,
    #[serde(default, skip_serializing_if = "no_length")]
    pub(crate) uid: u32,
    #[serde(default, skip_serializing_if = "no_length")]
    pub(crate) gid: u32,
}

/// Go writes an empty slice as `null`.
pub(crate) fn null_is_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(d: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

/// Bytes as standard base64, `null` meaning none, as Go does it.
pub(crate) mod base64_bytes {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use super::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&STANDARD.encode(bytes))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<u8>, D::Error> {
        let text = Option::<String>::deserialize(d)?.unwrap_or_default();
        STANDARD.decode(text).map_err(serde::de::Error::custom)
    }
}

/// Optional bytes as base64.
pub(crate) mod base64_optional {
    use super::{Deserializer, Serializer, base64_bytes};

    #[expect(clippy::ref_option, reason = "serde passes a reference to the field")]
    pub(crate) fn serialize<S: Serializer>(bytes: &Option<Vec<u8>>, s: S) -> Result<S::Ok, S::Error> {
        base64_bytes::serialize(bytes.as_deref().unwrap_or_default(), s)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Vec<u8>>, D::Error> {
        base64_bytes::deserialize(d).map(|bytes| (!bytes.is_empty()).then_some(bytes))
    }
}
