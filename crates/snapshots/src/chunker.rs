//! Cuts large files where their content says so, so that an insertion changes one chunk and not all that follow.
//!
//! FastCDC: a gear hash rolls over the bytes, and a cut is where its upper bits are zero; more bits before the wanted
//! size and fewer after it keep chunks near that size. Files up to [`MIN`] are one chunk without looking at them.
//!
//! Files that change in place, databases above all, are cut at fixed places instead ([`Grain::Pages`]): scattered pages
//! would change nearly every large chunk, and nothing ever moves in them.
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

/// Files from this size on may be cut into pages; below, a file is one small chunk anyway.
const PAGED_FROM: u64 = 256 << 10;
/// Eight pages of SQLite, four of PostgreSQL, two of InnoDB. Half of this stores a third less of scattered changes, but
/// costs twice the lists and headers and compresses worse.
const PAGES: usize = 32 << 10;
/// A file has no more chunks than this, so that lists of blobs stay small: very large ones get larger chunks.
const MOST_CHUNKS: u64 = 1 << 18;
/// Chunks of this size show that a file was cut into pages before; content is never cut so small.
const PAGED_AVERAGE: u64 = (MIN / 2) as u64;

/// Where a file is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Grain {
    /// Where its content says so.
    Content,
    /// At multiples of this many bytes.
    Pages(usize),
}

impl Grain {
    /// Chooses by a file's size, its first bytes, and whether it was seen to change in place.
    pub(crate) fn of(size: u64, head: &[u8], in_place: bool) -> Self {
        if size < PAGED_FROM || !(in_place || is_database(head)) {
            return Self::Content;
        }
        let mut pages = PAGES;
        while size / pages as u64 > MOST_CHUNKS {
            pages *= 2;
        }
        // As coarse as that, pages gain nothing.
        if pages < MIN / 2 { Self::Pages(pages) } else { Self::Content }
    }

    /// Reports whether a file of this size, stored in so many blobs, was cut into pages.
    pub(crate) fn was_paged(size: u64, blobs: usize) -> bool {
        size >= PAGED_FROM && blobs as u64 > size / PAGED_AVERAGE + 1
    }

    /// Returns the length of the first chunk of `data`, which holds at least [`MAX`] bytes or all that is left.
    pub(crate) fn cut(self, data: &[u8]) -> usize {
        match self {
            Self::Content => cut(data),
            Self::Pages(pages) => pages.min(data.len()),
        }
    }
}

/// Tells files of SQLite, PostgreSQL, InnoDB, LMDB and bbolt by how they begin. An error costs only deduplication.
fn is_database(head: &[u8]) -> bool {
    let at = |offset: usize, bytes: &[u8]| head.get(offset..offset + bytes.len()) == Some(bytes);
    let sqlite = at(0, b"SQLite format 3\0");
    // A heap or index page: its size and layout version, and before them the offset of the special space within it.
    let postgres = at(18, &[0x04, 0x20]) && head.get(17).is_some_and(|high| *high <= 0x20) && !at(0, &[0; 12]);
    // Page 0 of a table space has no neighbours and is of the type "file header".
    let innodb = at(4, &[0; 4]) && at(24, &[0, 8]) && at(26, &[0; 8]);
    let lmdb = at(16, &[0xde, 0xc0, 0xef, 0xbe]);
    let bbolt = at(16, &[0xed, 0xda, 0x0c, 0xed]);
    sqlite || postgres || innodb || lmdb || bbolt
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

    #[test]
    fn databases_are_cut_into_pages_and_lists_stay_short() {
        let sqlite = b"SQLite format 3\0 and so on";
        assert_eq!(Grain::of(1 << 20, sqlite, false), Grain::Pages(PAGES));
        assert_eq!(Grain::of(1 << 10, sqlite, false), Grain::Content);
        assert_eq!(Grain::of(1 << 20, b"text", false), Grain::Content);
        assert_eq!(Grain::of(1 << 20, b"text", true), Grain::Pages(PAGES));
        let Grain::Pages(pages) = Grain::of(10 << 30, sqlite, false) else { panic!("no pages") };
        assert!((10 << 30) / pages as u64 <= MOST_CHUNKS);
        assert_eq!(Grain::of(1 << 40, sqlite, false), Grain::Content);
        assert!(Grain::was_paged(1 << 20, 32) && Grain::was_paged(10 << 30, (10 << 30) / pages));
        assert!(!Grain::was_paged(1 << 20, 2) && !Grain::was_paged(10, 1));
    }

    /// Where the chunks of a content end.
    fn ends(data: &[u8]) -> Vec<usize> {
        let mut end = 0;
        chunks(data)
            .into_iter()
            .map(|chunk| {
                end += chunk.len();
                end
            })
            .collect()
    }

    /// Another table, another number of bits or another size would store everything anew beside what is there.
    #[test]
    fn contents_are_cut_where_they_always_were() {
        let golden = [
            1_066_028, 2_290_823, 3_510_737, 4_660_842, 5_419_067, 6_577_901, 7_255_924, 7_819_921, 9_074_588,
            9_659_431, 10_850_044, 11_385_682, 12_705_940, 14_624_661, 15_707_745, 16_777_216,
        ];
        assert_eq!(ends(&noise(16 << 20)), golden);
        // Zeros never say so.
        assert_eq!(ends(&vec![0; (MAX << 1) + 5]), [MAX, MAX << 1, (MAX << 1) + 5]);
    }

    static NOISE: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| noise(5 << 20));

    proptest::proptest! {
        #![proptest_config(cases())]

        /// So a reader may fill its buffer as it likes, as long as it asks for more before it believes the last cut.
        #[test]
        fn prop_a_cut_does_not_depend_on_what_comes_after_it(seed in 0..1_000_u64, kept in 0..(3_usize << 20), other in 0..=255_u8) {
            let mut data = NOISE[..3 << 20].to_vec();
            data.rotate_left(usize::try_from(seed * 1000).unwrap_or(0));
            let whole = cut(&data);
            let part = cut(&data[..kept]);
            proptest::prop_assert!(part == whole.min(kept), "{part} of {kept}, and {whole} of all");
            data[whole..].fill(other);
            proptest::prop_assert_eq!(cut(&data), whole);
        }

        /// Whatever is inserted, from the first boundary on that both have, all are the same; and what is in a chunk before the
        /// bytes that are looked at moves none.
        #[test]
        fn prop_boundaries_depend_on_the_content_alone(at in 0..(1_usize << 20), inserted in 0..100_000_usize, edit in 0..MIN - 64) {
            let mut old = NOISE.to_vec();
            let mut new = old.clone();
            new.splice(at..at, std::iter::repeat_n(7, inserted));
            let (before, after) = (ends(&old), ends(&new));
            let moved: Vec<usize> = before.iter().filter(|end| **end > at).map(|end| end + inserted).collect();
            if let Some(first) = moved.iter().position(|end| after.contains(end)) {
                let again = after.iter().position(|end| *end == moved[first]).unwrap_or(0);
                proptest::prop_assert_eq!(&moved[first..], &after[again..]);
            }
            old[edit] ^= 0x55;
            proptest::prop_assert_eq!(ends(&old), before);
        }
    }

    fn cases() -> proptest::test_runner::Config {
        let usual = proptest::test_runner::Config::default();
        let cases = if std::env::var_os("PROPTEST_CASES").is_some() { usual.cases } else { 64 };
        proptest::test_runner::Config { cases, failure_persistence: None, ..usual }
    }
}
