//! Names of things in a repository: every one is a SHA-256 of what it names.
//!
//! Three newtypes keep apart what the format keeps apart: a blob or pack ([`Id`]), the root tree of a snapshot
//! ([`TreeId`]) and the small file that makes a snapshot exist ([`SnapshotFileId`]).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

/// A SHA-256: of a blob's plain text, or of a whole repository file as stored.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub(crate) [u8; 32]);

/// So many bytes of one piece, then of the other: few enough that a processor sees the second while it works on the first.
const TURN: usize = 128;

/// The text is not 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an id is 64 lower-case hexadecimal digits")]
pub struct InvalidId;

impl Id {
    /// Hashes data to the id it is stored under.
    #[must_use]
    pub fn of(data: &[u8]) -> Self {
        Self(Sha256::digest(data).into())
    }

    /// Hashes each piece, two at a time side by side: a hash is mostly a wait for its own last step, in which a processor can
    /// do another's.
    pub(crate) fn of_each(pieces: &[&[u8]]) -> Vec<Self> {
        let mut ids = vec![Self([0; 32]); pieces.len()];
        let mut finish = |(at, rest, mut hash): (usize, &[u8], Sha256)| {
            hash.update(rest);
            ids[at] = Self(hash.finalize().into());
        };
        let mut waiting = pieces.iter().enumerate().map(|(at, piece)| (at, *piece, Sha256::new()));
        let mut pair = [waiting.next(), waiting.next()];
        while let [Some((_, left, one)), Some((_, right, other))] = &mut pair {
            let whole = left.len().min(right.len()) / TURN * TURN;
            let turns = left[..whole].chunks_exact(TURN).zip(right[..whole].chunks_exact(TURN));
            turns.for_each(|(left, right)| {
                one.update(left);
                other.update(right);
            });
            (*left, *right) = (&left[whole..], &right[whole..]);
            for lane in &mut pair {
                if lane.as_ref().is_some_and(|(_, rest, _)| rest.len() < TURN) {
                    lane.take().into_iter().for_each(&mut finish);
                    *lane = waiting.next();
                }
            }
        }
        pair.into_iter().flatten().for_each(&mut finish);
        ids
    }

    /// Wraps 32 bytes that are a SHA-256 already.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// What each byte stands for as a hexadecimal digit; [`u8::MAX`] for those that are none. Upper case is none: file names are
/// compared as text, so each id must have one spelling. Index files and trees are full of ids, and a general decoder takes
/// several times as long.
const DIGITS: [u8; 256] = digits();

const fn digits() -> [u8; 256] {
    let mut table = [u8::MAX; 256];
    let mut digit = 0;
    while digit < 16 {
        table[b"0123456789abcdef"[digit as usize] as usize] = digit;
        digit += 1;
    }
    table
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl FromStr for Id {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return Err(InvalidId) };
        let pairs: &[[u8; 2]; 32] = pairs.try_into().map_err(|_| InvalidId)?;
        let mut seen = 0;
        let bytes = pairs.map(|[high, low]| {
            let (high, low) = (DIGITS[usize::from(high)], DIGITS[usize::from(low)]);
            seen |= high | low;
            high << 4 | low
        });
        if seen < 16 { Ok(Self(bytes)) } else { Err(InvalidId) }
    }
}

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = [0_u8; 64];
        hex::encode_to_slice(self.0, &mut text).map_err(serde::ser::Error::custom)?;
        serializer.serialize_str(std::str::from_utf8(&text).map_err(serde::ser::Error::custom)?)
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl serde::de::Visitor<'_> for Text {
            type Value = Id;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&InvalidId, f)
            }

            // Whether the text is borrowed or not: index files and lists of blobs are full of these, and none is kept.
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Id, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Text)
    }
}

macro_rules! newtype {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub Id);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                text.parse().map(Self)
            }
        }
    };
}

newtype! {
    /// The root tree of a snapshot, or of a live pass that has no snapshot (yet).
    TreeId
}
newtype! {
    /// A snapshot file in the repository; its text form is what `restic snapshots` abbreviates.
    SnapshotFileId
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_round_trips_and_is_strict() {
        let id = Id::of(b"x");
        assert_eq!(id.to_string().parse::<Id>(), Ok(id));
        assert!(id.to_string().to_uppercase().parse::<Id>().is_err());
        assert!("abc".parse::<Id>().is_err());
        let text = "0123456789abcdef".repeat(4);
        assert_eq!(text.parse::<Id>().map(|id| id.to_string()), Ok(text.clone()));
        for wrong in ["g", "/", ":", "`", "A", " ", "\u{80}"] {
            for at in [0, 1, 63] {
                let mut text = text.clone();
                text.replace_range(at..=at, wrong);
                assert!(text.parse::<Id>().is_err(), "{text}");
            }
        }
        assert!(text[..63].parse::<Id>().is_err() && format!("{text}00").parse::<Id>().is_err());
    }

    #[test]
    fn each_of_several_pieces_has_the_hash_it_has_alone() {
        let data: Vec<u8> = (0..3000_u32).flat_map(u32::to_le_bytes).collect();
        let lengths = [0, 1, 55, 56, 63, 64, 65, 127, 128, 129, 191, 192, 256, 4096, 12_000, 130, 0, 11_999, 128, 7];
        for count in 0..=lengths.len() {
            for shift in 0..lengths.len() {
                let lengths = lengths.iter().cycle().skip(shift).take(count);
                let pieces: Vec<&[u8]> =
                    lengths.enumerate().map(|(n, length)| &data[n.min(12_000 - length)..][..*length]).collect();
                assert_eq!(Id::of_each(&pieces), pieces.iter().map(|piece| Id::of(piece)).collect::<Vec<_>>());
            }
        }
    }
}
