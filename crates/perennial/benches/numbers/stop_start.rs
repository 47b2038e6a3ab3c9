//! Stop and start of a pod of 100,000 files, 1 % changed since its last snapshot: Perennial against what is done without it.
//!
//! Each of them has a volume of its own with the same files and a container that runs on it. A round of each: a snapshot,
//! where there is such a thing, and 1 % changed, which nobody is timed for; then **stop**, until neither container nor
//! volume is on the host any more, and **start**, until a container runs again on a volume with the same files. Who begins
//! changes with the round. A start comes right after its stop, when ext4 is slowest: it avoids inodes that were freed a
//! moment ago. That is so for all of them.
//!
//! Perennial reads back and proves what it stored before it deletes anything, and what it restored is on the disk when
//! the container starts. Of the others, only the floors wait for the disk.
//!
//! `PERENNIAL_BENCH_SHARE` (1) scales the data set, `PERENNIAL_BENCH_ROUNDS` (3) says how often.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use super::data;
use super::installation::{DEBIAN, Docker, IDLE, Installation, Pod, eventually};
use super::table::{self, Limit, Samples};

/// What stop → start may take of the same by `tar | gzip`.
const LIMIT: f64 = 0.1;
/// Where the volume is in its container.
const AT: &str = "/workspace";
const PASSWORD: &str = "correct horse";

/// Who keeps the data while nothing is on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keeper {
    PerennialOverlay,
    PerennialEngine,
    /// A helper container, as such systems do it.
    TarGzip,
    Restic,
    /// The floor of what compresses.
    TarZstd,
    /// The floor of what does not.
    Copied,
}

use Keeper::{Copied, PerennialEngine, PerennialOverlay, Restic, TarGzip, TarZstd};

const KEEPERS: [Keeper; 6] = [PerennialOverlay, TarGzip, PerennialEngine, Restic, TarZstd, Copied];

impl Keeper {
    const fn name(self) -> &'static str {
        match self {
            PerennialOverlay => "Perennial, overlay volumes",
            PerennialEngine => "Perennial, engine volumes",
            TarGzip => "`tar \\| gzip` in a helper container",
            Restic => "restic on the host",
            TarZstd => "floor: `tar \\| zstd -1 -T2`, synced",
            Copied => "floor: `cp -a` there and back, synced",
        }
    }
}

/// A container and its volume, and who keeps them.
struct Subject<'a> {
    keeper: Keeper,
    server: &'a Installation,
    /// Of Perennial's alone.
    pod: Option<Pod>,
    /// Names the container, its volume, and the directory beside it.
    name: String,
    beside: PathBuf,
    stop: Samples,
    start: Samples,
    both: Samples,
}

impl<'a> Subject<'a> {
    fn new(keeper: Keeper, turn: usize, server: &'a Installation) -> Self {
        let name = format!("bench-stop-start-{turn}");
        let beside = server.directory.path().join(&name);
        fs::create_dir(&beside).unwrap();
        let backend = match keeper {
            PerennialOverlay => Some("overlay"),
            PerennialEngine => Some("docker"),
            _ => None,
        };
        let pod = backend
            .map(|backend| server.pod_with(&name, DEBIAN, "runc", json!({"backend": backend, "tenant": backend})));
        let [stop, start, both] = [const { Samples::NONE }; 3];
        let subject = Self { keeper, server, pod, name, beside, stop, start, both };
        if subject.pod.is_none() {
            subject.make_volume();
            subject.run_container();
        }
        if keeper == Restic {
            subject.restic(&["init"]);
        }
        subject
    }

    /// Where the host sees its files while its container runs.
    fn files(&self) -> PathBuf {
        match &self.pod {
            Some(pod) => self.server.mountpoint(pod, "workspace"),
            None => self.docker(&["volume", "inspect", "--format", "{{.Mountpoint}}", &self.name]).trim().into(),
        }
    }

    fn docker(&self, arguments: &[&str]) -> String {
        self.server.docker.run(arguments)
    }

    fn make_volume(&self) {
        self.docker(&["volume", "create", "--label", self.server.label(), &self.name]);
    }

    fn run_container(&self) {
        let volume = format!("{}:{AT}", self.name);
        let label = self.server.label();
        self.docker(&[
            "run", "--detach", "--label", label, "--name", &self.name, "-v", &volume, DEBIAN, "sh", "-c", IDLE,
        ]);
    }

    /// Runs a command in a container made for it, with the volume at /data and the directory beside at /beside.
    fn help(&self, command: &[&str]) {
        let (volume, beside) = (format!("{}:/data", self.name), format!("{}:/beside", self.beside.display()));
        let label = self.server.label();
        self.docker(&[&["run", "--rm", "--label", label, "-v", &volume, "-v", &beside, DEBIAN], command].concat());
    }

    fn restic(&self, arguments: &[&str]) {
        let mut command = Command::new("restic");
        command.env("RESTIC_PASSWORD", PASSWORD).env("RESTIC_CACHE_DIR", self.beside.join("cache"));
        done(command.arg("--quiet").arg("--repo").arg(self.beside.join("repository")).args(arguments));
    }

    /// The newest copy that a change is compared with.
    fn prepare(&self) {
        match (&self.pod, self.keeper) {
            (Some(pod), _) => drop(self.server.snapshot(pod)),
            (None, Restic) => self.restic(&["backup", text(&self.files())]),
            (None, _) => {
                for entry in fs::read_dir(&self.beside).unwrap() {
                    let path = entry.unwrap().path();
                    if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
                }
            }
        }
    }

    fn stop(&self) {
        if let Some(pod) = &self.pod {
            return self.server.run(pod, "stop");
        }
        let (files, beside) = (self.files(), self.beside.display());
        self.docker(&["stop", &self.name]);
        match self.keeper {
            TarGzip => self.help(&["tar", "-czf", "/beside/data.tar.gz", "-C", "/data", "."]),
            Restic => self.restic(&["backup", text(&files)]),
            TarZstd => shell(&format!(
                "tar -C {0} -c . | zstd -q -1 -T2 -o {beside}/data.tar.zst && sync {beside}/data.tar.zst",
                files.display()
            )),
            Copied => shell(&format!("cp -a {0} {beside}/data && sync -f {beside}", files.display())),
            PerennialOverlay | PerennialEngine => unreachable!("it has a pod"),
        }
        self.docker(&["rm", &self.name]);
        self.docker(&["volume", "rm", &self.name]);
    }

    fn start(&self) {
        if let Some(pod) = &self.pod {
            return self.server.run(pod, "start");
        }
        self.make_volume();
        let (files, beside) = (self.files(), self.beside.display());
        match self.keeper {
            TarGzip => self.help(&["tar", "-xzf", "/beside/data.tar.gz", "-C", "/data"]),
            // It keeps absolute paths, and the volume is where it was.
            Restic => self.restic(&["restore", "latest", "--target", "/"]),
            TarZstd => {
                shell(&format!("zstd -q -d -c {beside}/data.tar.zst | tar -C {0} -x && sync -f {0}", files.display()))
            }
            Copied => shell(&format!("cp -a {beside}/data/. {0} && sync -f {0}", files.display())),
            PerennialOverlay | PerennialEngine => unreachable!("it has a pod"),
        }
        self.run_container();
    }

    fn assert_released(&self) {
        if let Some(pod) = &self.pod {
            return self.server.assert_released(pod);
        }
        for what in [&["inspect", &self.name][..], &["volume", "inspect", &self.name]] {
            assert!(!self.server.docker.try_run(what).1, "{} is still there", self.name);
        }
    }

    /// One change, stop and start.
    fn round(&mut self, round: u64) {
        self.prepare();
        let files = self.files();
        data::change(&files, 100 + round).unwrap();
        let before = census(&files);
        rustix::fs::sync();
        let stop = timed(|| self.stop());
        self.assert_released();
        rustix::fs::sync();
        let start = timed(|| self.start());
        let files = eventually("its files are seen by the host", || {
            let files = self.files();
            fs::read_dir(&files).is_ok_and(|mut entries| entries.next().is_some()).then_some(files)
        });
        let after = census(&files);
        assert!(before == after, "{}: {} files are now {}", self.keeper.name(), before.0.len(), after.0.len());
        self.stop.add(stop);
        self.start.add(start);
        self.both.add(stop + start);
        rustix::fs::sync();
    }
}

/// Every file's path, and the bytes of all.
fn census(files: &Path) -> (Vec<PathBuf>, u64) {
    let (mut found, bytes) = data::files(files).unwrap();
    for path in &mut found {
        *path = path.strip_prefix(files).unwrap().to_owned();
    }
    (found, bytes)
}

fn timed(work: impl FnOnce()) -> Duration {
    let began = Instant::now();
    work();
    began.elapsed()
}

fn shell(line: &str) {
    done(Command::new("bash").args(["-o", "pipefail", "-ec", line]));
}

fn done(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn setting<T: std::str::FromStr>(name: &str, default: T) -> T {
    std::env::var(name).ok().map_or(default, |text| text.parse().ok().unwrap_or_else(|| panic!("{name}={text}")))
}

pub fn run() -> Vec<String> {
    let (share, rounds) = (setting("PERENNIAL_BENCH_SHARE", 1.0), setting("PERENNIAL_BENCH_ROUNDS", 3));
    let server = Installation::on(Docker::shared(), &[]);
    let mut subjects: Vec<Subject<'_>> =
        KEEPERS.iter().enumerate().map(|(turn, keeper)| Subject::new(*keeper, turn, &server)).collect();
    for subject in &subjects {
        data::generate(&subject.files(), share).unwrap();
    }
    let (files, bytes) = data::files(&subjects[0].files()).unwrap();
    for round in 0..rounds {
        let count = subjects.len();
        for turn in 0..count {
            subjects[(turn + round) % count].round(round as u64);
        }
    }
    // Everybody changed the same.
    let (one, others) = subjects.split_first().unwrap();
    for other in others {
        done(Command::new("diff").arg("-rq").arg(one.files()).arg(other.files()));
    }
    report(&subjects, rounds, files.len(), bytes)
}

fn report(subjects: &[Subject<'_>], rounds: usize, files: usize, bytes: u64) -> Vec<String> {
    let gzip = subjects.iter().find(|s| s.keeper == TarGzip).unwrap();
    let ratio = |subject: &Subject<'_>| subject.both.median() / gzip.both.median();
    let row = |s: &Subject<'_>| {
        let mut row = vec![s.keeper.name().to_owned()];
        row.extend([&s.stop, &s.start, &s.both].map(Samples::seconds));
        row.push(format!("{:.2}", ratio(s)));
        row
    };
    #[expect(clippy::cast_precision_loss, reason = "gigabytes")]
    let size = bytes as f64 / 1e9;
    let title = format!(
        "Stop and start: {size:.2} GB, {files} files, 1 % changed since the last snapshot; \
         seconds, median (least–most) of {rounds} rounds"
    );
    let head = ["", "stop", "start", "stop → start", "× `tar \\| gzip`"];
    table::markdown(&title, &head, &subjects.iter().map(row).collect::<Vec<_>>());
    let limit = |s: &Subject<'_>| Limit {
        what: format!("{} × `tar | gzip`", s.keeper.name()),
        value: ratio(s),
        most: LIMIT,
        unit: "×",
    };
    let ours: Vec<Limit> = subjects.iter().filter(|s| s.pod.is_some()).map(limit).collect();
    table::limits("Stop and start: medians of stop → start", &ours)
}
