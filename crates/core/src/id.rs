//! Typed identifiers: `UUIDv7` in a short lower-case text form.
//!
//! The text is 26 characters of Crockford base 32, so it sorts by creation time, is safe as a DNS label and in a
//! volume name, and two identifiers of different kinds can never be mixed up by the compiler.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

/// Crockford's alphabet (no i, l, o, u), lower case. <https://www.crockford.com/base32.html>
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// 128 bits in groups of five.
const TEXT_LEN: usize = 26;

/// The text is not an identifier of this kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a valid {kind} id: expected {TEXT_LEN} lower-case letters and digits")]
pub struct ParseIdError {
    kind: &'static str,
}

fn encode(value: u128) -> String {
    let digit = |i: usize| {
        let index = usize::try_from((value >> (5 * (TEXT_LEN - 1 - i))) & 31).unwrap_or(0);
        char::from(ALPHABET[index])
    };
    (0..TEXT_LEN).map(digit).collect()
}

fn decode(text: &str) -> Option<u128> {
    if text.len() != TEXT_LEN {
        return None;
    }
    let mut value: u128 = 0;
    for (i, byte) in text.bytes().enumerate() {
        let digit = ALPHABET.iter().position(|a| *a == byte)?;
        // 26 × 5 = 130 bits: the first digit carries only three.
        if i == 0 && digit > 7 {
            return None;
        }
        value = (value << 5) | u128::try_from(digit).ok()?;
    }
    Some(value)
}

macro_rules! typed_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Uuid);

        impl $name {
            /// Wraps a UUID made by the caller (randomness and time are passed in, never read here).
            #[must_use]
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// Builds an identifier from a Unix time in milliseconds and random bits.
            #[must_use]
            pub fn from_parts(unix_millis: u64, random: [u8; 10]) -> Self {
                Self(uuid::Builder::from_unix_timestamp_millis(unix_millis, &random).into_uuid())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&encode(self.0.as_u128()))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($kind, "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                decode(text).map(|v| Self(Uuid::from_u128(v))).ok_or(ParseIdError { kind: $kind })
            }
        }
    };
}

typed_id!(/** Names one pod for ever. */ PodId, "pod");
typed_id!(/** Names one snapshot; also its tag in the repository. */ SnapshotId, "snapshot");
typed_id!(/** Names one operation. */ OperationId, "operation");
typed_id!(/** Names one subscription for ever. */ SubscriptionId, "subscription");
typed_id!(/** Names one message to one receiver, whatever number of tries it takes. */ DeliveryId, "delivery");
typed_id!(/** Names one token; says nothing about its secret. */ TokenId, "token");
typed_id!(/** Names one installation of Perennial; carried by everything it makes. */ InstallationId, "installation");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips_and_sorts_by_time() {
        let a = PodId::from_parts(1_700_000_000_000, [7; 10]);
        let b = PodId::from_parts(1_700_000_000_001, [0; 10]);
        assert_eq!(a.to_string().parse::<PodId>(), Ok(a));
        assert!(a.to_string() < b.to_string());
        assert_eq!(a.to_string().len(), TEXT_LEN);
    }

    #[test]
    fn wrong_text_is_refused() {
        for text in
            ["", "x", "zzzzzzzzzzzzzzzzzzzzzzzzzz", "0000000000000000000000000u", "../../../../../../etc/passwd"]
        {
            assert!(text.parse::<PodId>().is_err(), "{text}");
        }
    }
}
