//! Sizes and processor shares as people write them.

use std::fmt;

use serde::de::{self, Deserializer, Unexpected, Visitor};
use serde::{Deserialize, Serialize};

/// Suffixes of sizes, and what they multiply by.
const UNITS: [(&str, u64); 10] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("Pi", 1 << 50),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("P", 1_000_000_000_000_000),
];

/// A size in bytes: a number, or a text with one of the suffixes Ki, Mi, Gi, Ti, Pi, k, M, G, T, P.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Size(pub u64);

impl Size {
    /// Reads `512Mi`, `1.5Gi`, `1000`; a suffix other than those of the type is refused.
    ///
    /// # Errors
    /// One sentence that says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || {
            let short: String = text.chars().take(40).collect();
            format!("{short:?} is not a size: write bytes as a number, or a text such as \"512Mi\"")
        };
        let (number, unit) =
            UNITS.iter().find_map(|(suffix, unit)| text.strip_suffix(suffix).map(|n| (n, *unit))).unwrap_or((text, 1));
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit()) && part.len() <= 18;
        if whole.is_empty() || !digits(whole) || !digits(fraction) || (number.contains('.') && fraction.is_empty()) {
            return Err(wrong());
        }
        let whole: u128 = whole.parse().map_err(|_| wrong())?;
        let mut bytes = whole * u128::from(unit);
        if !fraction.is_empty() {
            let scale = 10u128.pow(u32::try_from(fraction.len()).map_err(|_| wrong())?);
            let part: u128 = fraction.parse().map_err(|_| wrong())?;
            if unit == 1 && part != 0 {
                return Err(wrong());
            }
            bytes += part * u128::from(unit) / scale;
        }
        u64::try_from(bytes).map(Self).map_err(|_| wrong())
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SizeVisitor;
        impl Visitor<'_> for SizeVisitor {
            type Value = Size;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes as a number, or a text such as \"512Mi\"")
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Size, E> {
                Ok(Size(value))
            }
            /// TOML has signed numbers only.
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Size, E> {
                u64::try_from(value).map(Size).map_err(|_| E::invalid_value(Unexpected::Signed(value), &self))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
                Size::parse(text).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(SizeVisitor)
    }
}

impl utoipa::PartialSchema for Size {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, Type};
        let bytes = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0));
        let text = ObjectBuilder::new()
            .schema_type(Type::String)
            .pattern(Some("^[0-9]{1,18}(\\.[0-9]{1,18})?(Ki|Mi|Gi|Ti|Pi|k|M|G|T|P)?$"));
        OneOfBuilder::new()
            .item(bytes)
            .item(text)
            .description(Some("Bytes as a number, or a text such as \"512Mi\"."))
            .into()
    }
}

impl utoipa::ToSchema for Size {}

/// A share of processors, such as 1.5; kept in billionths so that nothing is rounded on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cpus {
    /// Billionths of a CPU.
    pub nano: u64,
}

impl Cpus {
    /// Converts from processors; `None` for what is negative, not finite, or beyond a million.
    #[must_use]
    pub fn from_cpus(cpus: f64) -> Option<Self> {
        if !cpus.is_finite() || !(0.0..=1e6).contains(&cpus) {
            return None;
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 ..= 1e15 was just checked")]
        let nano = (cpus * 1e9).round() as u64;
        Some(Self { nano })
    }

    /// Reads a text such as `1.5`.
    ///
    /// # Errors
    /// One sentence that says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        text.parse().ok().and_then(Self::from_cpus).ok_or_else(|| format!("{text:?} is not a number of CPUs"))
    }
}

impl Cpus {
    #[expect(clippy::cast_precision_loss, reason = "at most 1e15, below 2^53")]
    fn to_cpus(self) -> f64 {
        self.nano as f64 / 1e9
    }
}

impl std::fmt::Display for Cpus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.to_cpus().fmt(f)
    }
}

impl Serialize for Cpus {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.to_cpus())
    }
}

impl<'de> Deserialize<'de> for Cpus {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let cpus = f64::deserialize(deserializer)?;
        Self::from_cpus(cpus).ok_or_else(|| de::Error::custom("is not a possible number of CPUs"))
    }
}

impl utoipa::PartialSchema for Cpus {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        use utoipa::openapi::schema::{ObjectBuilder, Type};
        ObjectBuilder::new().schema_type(Type::Number).description(Some("Processors, such as 1.5.")).into()
    }
}

impl utoipa::ToSchema for Cpus {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_people_write_them() {
        let good = [("0", 0), ("1000", 1000), ("512Mi", 512 << 20), ("1.5Gi", 3 << 29), ("2k", 2000)];
        for (text, bytes) in good {
            assert_eq!(Size::parse(text), Ok(Size(bytes)), "{text}");
        }
        for text in ["", "Mi", "-1", "1.5", "1 Mi", "512MB", "512mi", "1e3", ".5Gi", "99999999999Pi", "1.Gi"] {
            assert!(Size::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn cpus_are_exact() {
        assert_eq!(Cpus::parse("1.5"), Ok(Cpus { nano: 1_500_000_000 }));
        assert_eq!(Cpus::parse("0.1"), Ok(Cpus { nano: 100_000_000 }));
        for text in ["-1", "NaN", "inf", "x", "1e12"] {
            assert!(Cpus::parse(text).is_err(), "{text}");
        }
    }
}
