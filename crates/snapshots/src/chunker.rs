//! Cuts large files where their content says so, so that an insertion changes one chunk and not all that follow.
//!
//! FastCDC: a gear hash rolls over the bytes, and a cut is where its upper bits are zero; more bits before the wanted
//! size and fewer after it keep chunks near that size. Files up to [`MIN`] are one chunk without looking at them.
//! Changing any number here only costs deduplication against what was stored before.

/// No cut before this; also the size up to which a file is one blob.
pub(crate) const MIN: usize = 512 << 10;
const WANTED: usize = 1 << 20;
/// A cut at the latest here; restic's own limit.
pub(crate) const MAX: usize = 8 << 20;

const BITS_BEFORE: u32 = 22;
const BITS_AFTER: u32 = 18;

const GEAR: [u64; 256] = gear();

/// Fills the table with splitmix64, whose output passes for random.
const fn gear() -> [u64; 256] {
    let mut table = [0; 256];
    let mut state = 0x5065_7265_6e6e_6961_u64;
    let mut i = 0;
    while i < 256 {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        table[i] = z ^ (z >> 31);
        i += 1;
    }
    table
}

/// Returns the length of the first chunk of `data`, which holds at least [`MAX`] bytes or all that is left.
pub(crate) fn cut(data: &[u8]) -> usize {
    if data.len() <= MIN {
        return data.len();
    }
    let end = data.len().min(MAX);
    let middle = end.min(WANTED);
    // The hash remembers 64 bytes, so it starts that far before the first possible cut.
    let mut hash = 0_u64;
    for &byte in &data[MIN - 64..MIN] {
        hash = (hash << 1).wrapping_add(GEAR[usize::from(byte)]);
    }
    let mut roll = |range: std::ops::Range<usize>, bits: u32| {
        let start = range.start;
        data[range]
            .iter()
            .position(|&byte| {
                hash = (hash << 1).wrapping_add(GEAR[usize::from(byte)]);
                hash >> (64 - bits) == 0
            })
            .map(|at| start + at + 1)
    };
    roll(MIN..middle, BITS_BEFORE).or_else(|| roll(middle..end, BITS_AFTER)).unwrap_or(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(len: usize) -> Vec<u8> {
        let mut state = 1_u64;
        (0..len)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8
            })
            .collect()
    }

    fn chunks(mut data: &[u8]) -> Vec<&[u8]> {
        let mut out = Vec::new();
        while !data.is_empty() {
            let (chunk, rest) = data.split_at(cut(data));
            out.push(chunk);
            data = rest;
        }
        out
    }

    #[test]
    fn an_insertion_changes_few_chunks() {
        let old = noise(24 << 20);
        let mut new = old.clone();
        new.splice(5_000_000..5_000_000, *b"inserted");
        let (old, new) = (chunks(&old), chunks(&new));
        assert!(old.len() > 10, "{}", old.len());
        let changed = new.iter().filter(|c| !old.contains(c)).count();
        assert!(changed <= 3, "{changed}");
        assert!(old[..old.len() - 1].iter().all(|c| c.len() > MIN && c.len() <= MAX));
    }
}
