//! What is remembered of an entry that was copied: that it was there and how it was, in 16 bytes.

use sha2::{Digest as _, Sha256};

use crate::fsdir::Stat;

/// Stands for one entry in one state.
pub(super) type Mark = u128;

/// Makes marks that are good for one copy. Its key is random, so that nobody can prepare two entries whose marks agree.
#[derive(Debug, Clone, Copy)]
pub(super) struct Marks {
    key: u128,
}

impl Marks {
    pub(super) fn new() -> Self {
        Self { key: rand::random() }
    }

    /// Two entries, or two states of one that [`Stat::same_state`] tells apart, have different marks.
    pub(super) fn of(&self, tree: usize, path: &[u8], stat: &Stat) -> Mark {
        let mut hash = Sha256::new();
        hash.update(self.key.to_le_bytes());
        for part in [tree as u64, path.len() as u64] {
            hash.update(part.to_le_bytes());
        }
        hash.update(path);
        for part in [stat.ino, stat.dev, stat.size, u64::from(stat.mode)] {
            hash.update(part.to_le_bytes());
        }
        for time in [stat.mtime, stat.ctime] {
            hash.update(time.seconds.to_le_bytes());
            hash.update(time.nanoseconds.to_le_bytes());
        }
        let digest: [u8; 32] = hash.finalize().into();
        let (half, _) = digest.split_at(16);
        half.iter().fold(0, |mark, byte| mark << 8 | Mark::from(*byte))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fsdir::stat_fd;

    #[test]
    fn marks_tell_entries_and_states_apart_and_take_little() {
        let file = tempfile::tempfile().expect("file");
        let stat = stat_fd(&file.into()).expect("stat");
        let marks = Marks::new();
        let mark = marks.of(1, b"a/b", &stat);
        assert_eq!((marks.of(1, b"a/b", &stat), size_of::<Mark>()), (mark, 16));
        let times = |t: crate::node::Time| crate::node::Time { nanoseconds: t.nanoseconds ^ 1, ..t };
        let others = [
            marks.of(0, b"a/b", &stat),
            marks.of(1, b"a/c", &stat),
            marks.of(1, b"a/b", &Stat { ino: stat.ino + 1, ..stat }),
            marks.of(1, b"a/b", &Stat { dev: stat.dev + 1, ..stat }),
            marks.of(1, b"a/b", &Stat { size: stat.size + 1, ..stat }),
            marks.of(1, b"a/b", &Stat { mode: stat.mode ^ 1, ..stat }),
            marks.of(1, b"a/b", &Stat { mtime: times(stat.mtime), ..stat }),
            marks.of(1, b"a/b", &Stat { ctime: times(stat.ctime), ..stat }),
            Marks::new().of(1, b"a/b", &stat),
        ];
        for (n, other) in others.iter().enumerate() {
            assert_ne!(*other, mark, "{n}");
        }
    }
}
