//! Names in trees: JSON holds only Unicode, names are bytes, so the format quotes them like a Go string literal.
//!
//! Quoting escapes backslash, double quote, control characters and every byte that is not part of valid UTF-8
//! (`\xff`); what is left is text. Any escape of Go is understood when reading.

use std::fmt::Write as _;

/// Quotes a name for the `name` field of a node (without the surrounding quotation marks).
pub(crate) fn quote(name: &[u8]) -> String {
    let mut out = String::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' | '"' => {
                    out.push('\\');
                    out.push(c);
                }
                '\x07' => out.push_str("\\a"),
                '\x08' => out.push_str("\\b"),
                '\x0c' => out.push_str("\\f"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\x0b' => out.push_str("\\v"),
                // Writing to a String cannot fail.
                c if (c as u32) < 0x20 || c == '\x7f' => {
                    let _ = write!(out, "\\x{:02x}", c as u32);
                }
                c => out.push(c),
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out
}

/// Reverses [`quote`]; `None` when the text is not what Go's `strconv.Unquote` would accept.
pub(crate) fn unquote(text: &str) -> Option<Vec<u8>> {
    if !text.contains('\\') {
        return Some(text.as_bytes().to_vec());
    }
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.extend_from_slice(&rest.as_bytes()[..at]);
        rest = &rest[at + 1..];
        let kind = rest.chars().next()?;
        rest = &rest[kind.len_utf8()..];
        let simple = match kind {
            'a' => Some(7),
            'b' => Some(8),
            'f' => Some(12),
            'n' => Some(b'\n'),
            'r' => Some(b'\r'),
            't' => Some(b'\t'),
            'v' => Some(11),
            '\\' => Some(b'\\'),
            '"' => Some(b'"'),
            _ => None,
        };
        if let Some(byte) = simple {
            out.push(byte);
            continue;
        }
        if kind.is_digit(8) {
            let digits = rest.get(..2)?;
            out.push(u8::try_from(kind.to_digit(8)? * 64 + u32::from_str_radix(digits, 8).ok()?).ok()?);
            rest = &rest[2..];
            continue;
        }
        let len = match kind {
            'x' => 2,
            'u' => 4,
            'U' => 8,
            _ => return None,
        };
        let digits = rest.get(..len).filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()))?;
        let value = u32::from_str_radix(digits, 16).ok()?;
        rest = &rest[len..];
        if kind == 'x' {
            out.push(u8::try_from(value).ok()?);
        } else {
            out.extend_from_slice(char::from_u32(value)?.encode_utf8(&mut [0; 4]).as_bytes());
        }
    }
    out.extend_from_slice(rest.as_bytes());
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_like_go() {
        assert_eq!(quote("grüße".as_bytes()), "grüße");
        assert_eq!(quote(b"a\"b\\c\nd\x01\xff\xc3"), "a\\\"b\\\\c\\nd\\x01\\xff\\xc3");
        assert_eq!(unquote("\\u00fc\\U0001F600\\101\\x41\\a"), Some("ü😀AA\x07".as_bytes().to_vec()));
        assert_eq!(unquote("\\q"), None);
        assert_eq!(unquote("\\x4"), None);
        assert_eq!(unquote("end\\"), None);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_come_back(name: Vec<u8>) {
            proptest::prop_assert_eq!(unquote(&quote(&name)), Some(name));
        }
    }
}
