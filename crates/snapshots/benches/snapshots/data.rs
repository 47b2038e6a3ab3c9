//! The data set: what lies on a developer's machine, made from a seed, the same on every machine.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The page size of the databases.
const PAGE: usize = 4096;
const DATABASES: [u64; 3] = [200, 100, 50];
/// The database of which some pages change.
const CHANGING_DATABASE: &str = "databases/0.sqlite";

/// splitmix64: small, fast, and its output passes for random.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n.max(1) as u64).unwrap_or(0)
    }

    /// Around the mean, with few large and many small: sizes of files look like this.
    fn size(&mut self, mean: usize) -> usize {
        let doublings = (self.next() % 6 + self.next() % 6) as u32;
        let base = (mean << doublings) / 96;
        base + self.below(base.max(32))
    }

    fn noise(&mut self, out: &mut Vec<u8>, len: usize) {
        let end = out.len() + len;
        while out.len() < end {
            out.extend_from_slice(&self.next().to_le_bytes());
        }
        out.truncate(end);
    }
}

/// Words with the frequencies of words: the first are much more frequent than the last.
struct Words(Vec<String>);

impl Words {
    fn new() -> Self {
        const PARTS: [&str; 40] = [
            "get", "set", "value", "node", "list", "item", "index", "map", "user", "name", "type", "data", "state",
            "err", "callback", "config", "option", "module", "export", "default", "render", "update", "event",
            "handler", "stream", "buffer", "path", "file", "result", "request", "response", "parse", "token", "query",
            "schema", "cache", "lock", "time", "key", "id",
        ];
        let mut random = Random::new(7);
        let word = |random: &mut Random| {
            let count = 1 + random.below(3);
            (0..count).map(|_| PARTS[random.below(PARTS.len())]).collect::<Vec<_>>().join("_")
        };
        Self((0..4000).map(|_| word(&mut random)).collect())
    }

    fn pick(&self, random: &mut Random) -> &str {
        // The square root of the rank is uniform.
        let r = random.below(1000);
        let rank = r * r * self.0.len() / 1_000_000;
        &self.0[(rank + random.below(9)).min(self.0.len() - 1)]
    }

    fn code(&self, random: &mut Random, len: usize) -> Vec<u8> {
        const LINES: [&str; 8] = [
            "  const @ = require('./@');\n",
            "  if (@ && @.@ !== undefined) {\n",
            "    return @.@(@, #);\n",
            "  }\n",
            "  // @ of the @ is # when @ was not given\n",
            "function @(@, @) {\n",
            "    this.@ = @ || \"@\";\n",
            "  \"@\": \"^#.#.0\",\n",
        ];
        let mut out = Vec::with_capacity(len + 80);
        while out.len() < len {
            for c in LINES[random.below(LINES.len())].bytes() {
                match c {
                    b'@' => out.extend_from_slice(self.pick(random).as_bytes()),
                    b'#' => out.extend_from_slice(random.below(1000).to_string().as_bytes()),
                    c => out.push(c),
                }
            }
        }
        out.truncate(len);
        out
    }

    fn log(&self, random: &mut Random, len: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(len + 160);
        let mut at = 1_700_000_000_000 + random.next() % 1_000_000_000;
        while out.len() < len {
            at += random.next() % 900;
            let (a, b) = (self.pick(random), self.pick(random));
            let (status, took) = ([200, 200, 200, 304, 404][random.below(5)], random.below(400));
            let client = random.below(250);
            let line = format!("{at} INFO 10.0.0.{client} GET /api/{a}/{b} {status} {took}ms \"Mozilla/5.0 (X11)\"\n");
            out.extend_from_slice(line.as_bytes());
        }
        out.truncate(len);
        out
    }

    /// Machine code and tables: repeats itself at short distances, but not much.
    fn binary(&self, random: &mut Random, len: usize) -> Vec<u8> {
        let mut out = b"\x7fELF\x02\x01\x01\0".to_vec();
        while out.len() < len {
            match random.below(8) {
                0 => out.extend_from_slice(self.pick(random).as_bytes()),
                1 | 2 => random.noise(&mut out, 12),
                3 => out.extend_from_slice(&[0; 8]),
                _ => {
                    let op = [0x48, 0x89, 0x8b, 0xe8, 0x0f, 0x83][random.below(6)];
                    out.extend_from_slice(&[0x48, op, random.next() as u8, random.next() as u8, 0, 0]);
                }
            }
        }
        out.truncate(len);
        out
    }

    fn page(&self, random: &mut Random) -> Vec<u8> {
        let mut page = vec![0x0d, 0, 0, 0];
        while page.len() < PAGE * 4 / 5 {
            let row = format!("{}|{}|", self.pick(random), self.pick(random));
            page.extend_from_slice(row.as_bytes());
            random.noise(&mut page, 20);
        }
        page.resize(PAGE, 0);
        page
    }
}

/// Makes the data set; `share` is the part of its full size (2.5 GB in 100,000 files).
pub fn generate(root: &Path, share: f64) -> io::Result<()> {
    let words = Words::new();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
    let scaled = |n: usize| ((n as f64 * share) as usize).max(1);
    let random = &mut Random::new(1);
    let mut earlier: Vec<Vec<u8>> = Vec::new();
    for i in 0..scaled(70_000) {
        let dir = root.join(format!("home/project{}/node_modules/package{}/lib", i / 14_000, i / 9));
        // The same versions of packages are in several projects.
        let same = (i % 6 == 5).then(|| earlier.get(random.below(earlier.len())).cloned()).flatten();
        let data = same.unwrap_or_else(|| {
            let len = random.size(6000);
            words.code(random, len)
        });
        put(&dir, &format!("module{i}.js"), &data)?;
        if i % 12 == 0 {
            earlier.push(data);
        }
    }
    for i in 0..scaled(20_000) {
        let mut data = b"x\x01".to_vec();
        let len = random.size(3000);
        random.noise(&mut data, len);
        put(
            &root.join(format!("home/project{}/.git/objects/{:02x}", i % 5, i / 5 % 256)),
            &format!("{i:038x}"),
            &data,
        )?;
    }
    for i in 0..scaled(8_000) {
        let len = random.size(15_000);
        let data = words.code(random, len);
        put(&root.join(format!("home/project{}/src/part{}", i % 5, i / 5 / 20)), &format!("source{i}.rs"), &data)?;
    }
    for i in 0..scaled(4) {
        let mut data = b"PACK".to_vec();
        random.noise(&mut data, scaled(50 << 20));
        put(&root.join("home/project0/.git/objects/pack"), &format!("pack-{i}.pack"), &data)?;
    }
    for i in 0..scaled(200) {
        let data = words.binary(random, 2_000_000);
        put(&root.join("usr/bin"), &format!("tool{i}"), &data)?;
    }
    for i in 0..scaled(300) {
        let data = words.log(random, 1_000_000);
        put(&root.join("var/log"), &format!("service{}.log.{}", i / 20, i % 20), &data)?;
    }
    for i in 0..scaled(400) {
        let mut data = b"\xff\xd8\xff\xe0".to_vec();
        random.noise(&mut data, 1_200_000);
        put(&root.join(format!("media/{}", i / 100)), &format!("image{i}.jpg"), &data)?;
    }
    for (i, megabytes) in DATABASES.into_iter().enumerate() {
        fs::create_dir_all(root.join("databases"))?;
        let mut file = io::BufWriter::new(File::create(root.join(format!("databases/{i}.sqlite")))?);
        let mut first = b"SQLite format 3\0\x10\0".to_vec();
        first.resize(PAGE, 1);
        file.write_all(&first)?;
        for _ in 1..scaled(usize::try_from(megabytes << 20).unwrap_or(0) / PAGE) {
            file.write_all(&words.page(random))?;
        }
        file.into_inner().map_err(io::IntoInnerError::into_error)?;
    }
    Ok(())
}

fn put(dir: &Path, name: &str, data: &[u8]) -> io::Result<()> {
    let path = dir.join(name);
    match fs::write(&path, data) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(dir)?;
            fs::write(&path, data)
        }
        other => other,
    }
}

/// Files and bytes of a tree, and all paths of regular files, sorted.
pub fn files(root: &Path) -> io::Result<(Vec<PathBuf>, u64)> {
    let (mut files, mut bytes, mut dirs) = (Vec::new(), 0, vec![root.to_owned()]);
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let meta = entry.metadata()?;
            if meta.is_dir() {
                dirs.push(entry.path());
            } else {
                bytes += meta.len();
                files.push(entry.path());
            }
        }
    }
    files.sort_unstable();
    Ok((files, bytes))
}

/// Changes every hundredth file as an editor saves it, and every twentieth page of one database in place.
pub fn change(root: &Path, seed: u64) -> io::Result<()> {
    let random = &mut Random::new(seed);
    let (files, _) = files(root)?;
    let database = root.join(CHANGING_DATABASE);
    let shift = random.below(100);
    for path in files.iter().skip(shift).step_by(100).filter(|path| path.extension() != database.extension()) {
        let mut data = fs::read(path)?;
        let at = random.below(data.len() + 1);
        data.splice(at..at, format!("\nchanged {}\n", random.next()).into_bytes());
        let beside = path.with_extension("saved");
        fs::write(&beside, data)?;
        fs::rename(beside, path)?;
    }
    let words = Words::new();
    let file = OpenOptions::new().write(true).open(&database)?;
    let pages = usize::try_from(file.metadata()?.len()).unwrap_or(0) / PAGE;
    for _ in 0..pages / 20 {
        let page = 1 + random.below(pages.max(2) - 1);
        file.write_all_at(&words.page(random), (page * PAGE) as u64)?;
    }
    Ok(())
}
