//! `perennial repository …` without a server: the real program on plain directories, beside restic.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod s3;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use s3::{CREDENTIALS, S3};

const PASSWORD: &str = "correct horse";

/// A scratch directory with a source tree, a password file and the address of a repository that is not there yet.
struct Desk {
    directory: tempfile::TempDir,
    repository: String,
    environment: Vec<(&'static str, &'static str)>,
}

/// What a program answered.
struct Answer {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Answer {
    #[track_caller]
    fn json(&self) -> Value {
        assert_eq!(self.code, 0, "{}{}", self.stdout, self.stderr);
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {}", self.stdout))
    }

    #[track_caller]
    fn fails(&self, code: i32, words: &str) {
        assert_eq!(self.code, code, "{}{}", self.stdout, self.stderr);
        assert!(self.stderr.starts_with("error: ") && self.stderr.contains(words), "{}", self.stderr);
    }

    /// The same for one that was asked for JSON: it says so in JSON as well.
    #[track_caller]
    fn fails_in_json(&self, code: i32, words: &str) {
        assert_eq!(self.code, code, "{}{}", self.stdout, self.stderr);
        let problem: Value = serde_json::from_str(&self.stderr).unwrap();
        let says = |field: &str| problem[field].as_str().is_some_and(|text| text.contains(words));
        assert!(says("detail") || says("hint"), "{problem:#}");
    }
}

impl Desk {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("password"), format!("{PASSWORD}\n")).unwrap();
        let repository = directory.path().join("repo").to_str().unwrap().to_owned();
        let desk = Self { directory, repository, environment: Vec::new() };
        make_tree(&desk.source());
        desk
    }

    /// Its path without links, as snapshots name it.
    fn source(&self) -> PathBuf {
        self.directory.path().canonicalize().unwrap().join("source")
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().unwrap().to_owned()
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", "/nonexistent");
        command.envs(self.environment.iter().copied()).current_dir(self.directory.path());
        command
    }

    /// Runs `perennial repository` with the place and the password filled in.
    fn run(&self, arguments: &[&str]) -> Answer {
        self.run_raw(&[arguments, &["--repo", &self.repository, "--password-file", "password"]].concat())
    }

    fn run_raw(&self, arguments: &[&str]) -> Answer {
        answer(self.command(env!("CARGO_BIN_EXE_perennial")).arg("repository").args(arguments))
    }

    fn json(&self, arguments: &[&str]) -> Value {
        self.run(&[arguments, &["--output", "json"]].concat()).json()
    }

    /// Runs restic, which must succeed.
    fn restic(&self, arguments: &[&str]) -> String {
        let mut command = self.command("restic");
        command.env("RESTIC_PASSWORD", PASSWORD).args(["--no-cache", "-r", &self.repository]).args(arguments);
        let answer = answer(&mut command);
        assert_eq!(answer.code, 0, "restic {arguments:?}: {}{}", answer.stdout, answer.stderr);
        answer.stdout
    }
}

fn answer(command: &mut Command) -> Answer {
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Answer { code: output.status.code().unwrap(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

fn make_tree(root: &Path) {
    fs::create_dir_all(root.join("deep/er")).unwrap();
    fs::create_dir_all(root.join("cache/x")).unwrap();
    fs::write(root.join("cache/x/big"), vec![7; 300_000]).unwrap();
    fs::write(root.join("note"), "a note\n").unwrap();
    fs::write(root.join("deep/er/grüße 😀"), "text ".repeat(50_000)).unwrap();
    fs::write(root.join("empty"), "").unwrap();
    symlink("note", root.join("link")).unwrap();
    fs::hard_link(root.join("note"), root.join("deep/hard")).unwrap();
    fs::set_permissions(root.join("note"), fs::Permissions::from_mode(0o4751)).unwrap();
}

/// Bytes that do not compress.
fn noise(len: usize) -> Vec<u8> {
    let word = |n: u64| {
        let z = n.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        (z ^ (z >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9).to_le_bytes()
    };
    (0..len as u64 / 8).flat_map(word).collect()
}

/// What the system says about a tree: type and mode, owner, time of change, and content or target.
fn look(root: &Path) -> BTreeMap<PathBuf, (u32, u32, i64, i64, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut todo = vec![root.to_path_buf()];
    while let Some(path) = todo.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let content = if meta.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            Vec::new()
        } else if meta.is_symlink() {
            fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
        } else {
            fs::read(&path).unwrap()
        };
        let at = path.strip_prefix(root).unwrap().to_path_buf();
        found.insert(at, (meta.mode(), meta.uid(), meta.mtime(), meta.mtime_nsec(), content));
    }
    found
}

/// The life of a repository: made, written, looked at, restored, cleaned up.
fn life(desk: &Desk) {
    let source = desk.source();
    let at = source.to_str().unwrap();
    desk.run(&["snapshots"]).fails(3, "there is no repository here");
    assert!(desk.json(&["init"])["id"].as_str().unwrap().len() == 64);
    desk.run(&["init"]).fails(4, "already");
    desk.run(&["restore", "latest", "--target", "out"]).fails(3, "no snapshot yet");

    let first = desk.json(&["backup", "source", "--tag", "one", "--exclude", "source/cache"]);
    assert_eq!((&first["files"], &first["parent"]), (&Value::from(5), &Value::Null));
    let again = desk.json(&["backup", "source", "--exclude", "source/cache"]);
    assert_eq!(again["parent"], first["snapshot"]);
    assert_eq!(again["readBytes"], 0, "what is unchanged is not read again: {again}");

    let listed = desk.json(&["snapshots", "--tag", "one"]);
    assert_eq!(listed.as_array().unwrap().len(), 1);
    assert_eq!((&listed[0]["id"], &listed[0]["paths"][0]), (&first["snapshot"], &Value::from(at)));
    let names = desk.json(&["ls", "latest", at]);
    let names: Vec<_> = names.as_array().unwrap().iter().map(|e| e["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["deep", "empty", "link", "note"]);
    assert!(desk.run(&["ls", "latest", at]).stdout.contains("link -> note"));
    desk.run(&["ls", "latest", "/nowhere"]).fails(3, "/nowhere");

    let id = first["snapshot"].as_str().unwrap();
    let out = desk.path("out");
    let restored = desk.json(&["restore", &id[..12], "--target", &out, "--path", at]);
    assert_eq!(restored["files"], 5);
    let mut expected = look(&source);
    expected.retain(|path, _| !path.starts_with("cache"));
    assert_eq!(look(Path::new(&out)), expected);
    desk.run(&["restore", "latest", "--target", &out]).fails(4, "is not empty");
    desk.run(&["restore", "latest", "--target", &desk.path("whole")]);
    assert_eq!(fs::read(desk.path("whole") + at + "/note").unwrap(), b"a note\n");

    assert_eq!(desk.json(&["check", "--read-data"])["problems"], Value::Array(vec![]));
    copies(desk, id);
    desk.run(&["forget", &id[..12]]).fails(2, "needs a confirmation");
    assert!(desk.run(&["forget", &id[..12], "--dry-run"]).stdout.contains("nothing was done"));
    assert_eq!(desk.json(&["snapshots"]).as_array().unwrap().len(), 2);
    desk.run(&["forget"]).fails(2, "required");
    desk.run(&["forget", &id[..12], "--keep-last", "1"]).fails(2, "cannot be used with");
    desk.run(&["forget", "--keep-manual", "rotate", "--yes"]).fails(2, "say nothing");
    desk.run(&["forget", "--keep-daily", "9", "--time-zone", "Mars", "--yes"]).fails(2, "not a time zone");
    let by_rule = desk.json(&["forget", "--keep-last", "1", "--time-zone", "Europe/Berlin", "--dry-run"]);
    assert_eq!((&by_rule["snapshots"][0]["id"], by_rule["kept"].as_array().unwrap().len()), (&first["snapshot"], 1));
    assert_eq!(by_rule["kept"][0]["reasons"][0], "last: number 1 of the newest 1");
    assert_eq!(desk.json(&["forget", "--keep-last", "5", "--yes"])["snapshots"], Value::Array(vec![]));
    let forgotten = desk.json(&["forget", &id[..12], "latest", "--yes"]);
    assert_eq!(forgotten["snapshots"].as_array().unwrap().len(), 2);
    let plan = desk.json(&["prune", "--dry-run"]);
    assert_eq!((plan["dryRun"].as_bool(), plan["bytesFreed"].as_u64() > Some(0)), (Some(true), true), "{plan}");
    let done = desk.json(&["prune"]);
    assert_eq!((&done["packsDeleted"], &done["bytesFreed"]), (&plan["packsDeleted"], &plan["bytesFreed"]));
    assert_eq!(desk.json(&["check", "--read-data"])["packs"], 0);
}

/// To a directory and back, with another password.
fn copies(desk: &Desk, id: &str) {
    let mut other =
        Desk { directory: tempfile::tempdir().unwrap(), repository: desk.path("other"), environment: vec![] };
    fs::write(other.path("password"), PASSWORD).unwrap();
    fs::write(desk.path("other-password"), "another one").unwrap();
    let to = ["--to", &other.repository.clone(), "--to-password-file", "other-password"].map(str::to_owned);
    let to: Vec<&str> = to.iter().map(String::as_str).collect();
    desk.run(&[&["copy"], &to[..]].concat()).fails(3, "repository init makes one");
    desk.run(&["copy", "--to", &other.repository]).fails(2, "--to-password-file");
    desk.run(&["copy", "--to", "sftp:x", "--to-password-file", "other-password"]).fails(6, "sftp");
    other.run_raw(&["init", "--repo", &other.repository, "--password-command", "echo another one"]);
    desk.run(&[&["copy", "abcdef"], &to[..]].concat()).fails(3, "no snapshot begins with abcdef");
    let one = desk.json(&[&["copy", &id[..12]], &to[..]].concat());
    assert_eq!((&one["snapshots"][0]["snapshot"], one["already"].as_array().unwrap().len()), (&Value::from(id), 0));
    let rest = desk.json(&[&["copy"], &to[..]].concat());
    assert_eq!((rest["snapshots"].as_array().unwrap().len(), &rest["already"][0]["snapshot"]), (1, &Value::from(id)));
    assert!(desk.run(&[&["copy"], &to[..]].concat()).stdout.contains("0 snapshots copied, 2 were there"));
    desk.run(&["copy", "--to", &desk.repository, "--to-password-file", "password"]).fails(6, "copied to itself");
    other.environment = vec![("RESTIC_PASSWORD", "another one")];
    let place = ["--repo", other.repository.as_str(), "--password-command", "echo another one"];
    let copy = one["snapshots"][0]["copy"].as_str().unwrap();
    let (target, source) = (desk.path("from the copy"), desk.source());
    let restore = ["restore", copy, "--target", &target, "--path", source.to_str().unwrap()];
    let restored = other.run_raw(&[&restore[..], &place, &["--output", "json"]].concat()).json();
    assert_eq!(restored["files"], 5);
    assert!(other.run_raw(&[&["check", "--read-data"], &place[..]].concat()).stdout.contains("no damage was found"));
}

#[test]
fn with_the_least_memory_a_repository_holds_the_same_and_less_is_refused_before_anything_is_touched() {
    let desk = Desk::new();
    let source = desk.source();
    fs::write(source.join("large"), noise(20 << 20)).unwrap();
    desk.run(&["init", "--memory", "127Mi"]).fails(2, "128Mi or more");
    assert!(!Path::new(&desk.repository).exists());
    desk.run(&["init", "--memory", "some"]).fails(2, "not a size");
    desk.json(&["init"]);
    let least = |arguments: &[&str]| desk.json(&[arguments, &["--memory", "128Mi", "--threads", "8"]].concat());
    least(&["backup", "source"]);
    assert_eq!(least(&["check", "--read-data"])["problems"], Value::Array(vec![]));
    least(&["restore", "latest", "--target", &desk.path("out"), "--path", source.to_str().unwrap()]);
    assert_eq!(look(&desk.directory.path().join("out")), look(&source));
    // Whoever has more goes on with it, and the other way round.
    assert_eq!(desk.json(&["backup", "source"])["newBytes"].as_u64().map(|bytes| bytes < 1 << 20), Some(true));
    least(&["forget", "latest", "--yes"]);
    least(&["prune"]);
    desk.restic(&["check", "--read-data"]);
}

#[test]
fn a_repository_in_a_directory_lives_without_a_server() {
    life(&Desk::new());
}

#[test]
fn a_repository_in_a_real_s3_lives_without_a_server() {
    let Some(service) = S3::start() else { return };
    let mut desk = Desk::new();
    desk.repository = format!("{}/by hand", service.address);
    desk.run(&["init"]).fails(6, "AWS_ACCESS_KEY_ID");
    desk.environment = vec![("AWS_ACCESS_KEY_ID", "perennial"), ("AWS_SECRET_ACCESS_KEY", "not-the-one")];
    let refused = desk.run(&["init"]);
    refused.fails(5, "403");
    assert!(!refused.stderr.contains("not-the-one"), "{}", refused.stderr);
    desk.environment = CREDENTIALS.to_vec();
    life(&desk);
}

#[test]
fn a_repository_in_a_real_azurite_lives_without_a_server() {
    let Some(service) = S3::start_by("PERENNIAL_TEST_AZURITE_SCRIPT") else { return };
    let mut desk = Desk::new();
    desk.repository = "azure:container:/by hand".to_owned();
    desk.run(&["init"]).fails(6, "AZURE_ACCOUNT_NAME");
    let endpoint = service.address.clone().leak();
    let of = |key| {
        vec![
            ("AZURE_ACCOUNT_NAME", "devstoreaccount1"),
            ("AZURE_ACCOUNT_KEY", key),
            ("AZURE_STORAGE_ENDPOINT", &*endpoint),
        ]
    };
    desk.environment = of("bm90IHRoZSBvbmU=");
    let refused = desk.run(&["init"]);
    refused.fails(5, "403");
    assert!(!refused.stderr.contains("bm90"), "{}", refused.stderr);
    // The well-known key of every Azurite.
    desk.environment = of("Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==");
    life(&desk);
}

#[test]
fn restic_reads_what_the_command_line_writes_and_the_other_way_round() {
    let desk = Desk::new();
    let source = desk.source();
    let at = source.to_str().unwrap();
    desk.json(&["init"]);
    desk.json(&["backup", "source", "--tag", "ours"]);
    assert!(desk.restic(&["check", "--read-data"]).contains("no errors were found"));
    assert!(desk.restic(&["snapshots", "--tag", "ours"]).contains(at));
    desk.restic(&["restore", "latest", "--target", &desk.path("theirs")]);
    assert_eq!(look(Path::new(&(desk.path("theirs") + at))), look(&source));

    fs::write(source.join("note"), "a newer note\n").unwrap();
    desk.restic(&["backup", at, "--tag", "theirs"]);
    desk.json(&["restore", "latest", "--target", &desk.path("ours"), "--path", at]);
    assert_eq!(look(Path::new(&desk.path("ours"))), look(&source));
    // On a snapshot of restic's ours builds, and nothing is stored twice.
    let next = desk.json(&["backup", "source"]);
    assert!(next["parent"].is_string() && next["newBytes"].as_u64().unwrap() < 50_000, "{next}");
    assert!(desk.restic(&["check", "--read-data"]).contains("no errors were found"));

    // One that restic made.
    let mut theirs = Desk::new();
    theirs.repository = desk.path("made by restic");
    theirs.restic(&["init", "--repository-version", "2"]);
    theirs.json(&["backup", "source"]);
    assert_eq!(theirs.json(&["check", "--read-data"])["problems"], Value::Array(vec![]));
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_touched() {
    let desk = Desk::new();
    desk.json(&["init"]);
    let table: [(&[&str], i32, &str); 10] = [
        (&["backup", "nowhere"], 6, "DIR: nowhere"),
        (&["backup", "source/note"], 6, "not a directory"),
        (&["backup", "source", "source/deep"], 6, "overlaps"),
        (&["backup", "/"], 6, "root directory"),
        (&["backup", "source", "--exclude", "password"], 6, "exclude: password"),
        (&["backup", "source", "--exclude", "source"], 6, "exclude: source"),
        (&["backup", "source", "--tag", "pod:1"], 6, "tag: pod:"),
        (&["restore", "zz", "--target", "out"], 6, "neither the beginning"),
        (&["restore", "abcdef", "--target", "out"], 3, "no snapshot begins with abcdef"),
        (&["forget", "latest", "--yes"], 3, "no snapshot yet"),
    ];
    for (arguments, code, words) in table {
        desk.run(arguments).fails(code, words);
    }
    assert_eq!(desk.json(&["snapshots"]), Value::Array(vec![]));
    let places: [(&[&str], i32, &str); 5] = [
        (&["snapshots", "--repo", "sftp:host:/x", "--password-file", "password"], 6, "sftp: is no kind of place"),
        (&["snapshots", "--repo", "s3:http://store.example/b", "--password-file", "password"], 6, "bucket"),
        (&["snapshots", "--repo", "repo"], 2, "no password"),
        (&["snapshots", "--repo", "repo", "--password-file", "nowhere"], 6, "password-file: read nowhere"),
        (&["snapshots", "--repo", "repo", "--password-command", "echo wrong"], 5, "no key"),
    ];
    for (arguments, code, words) in places {
        desk.run_raw(arguments).fails(code, words);
    }
    assert_eq!(desk.run_raw(&["snapshots", "--repo", "repo", "--password-command", "cat password"]).code, 0);
}

#[test]
fn a_restore_in_place_writes_what_differs_and_removes_only_what_was_confirmed() {
    let desk = Desk::new();
    let source = desk.source();
    let at = source.to_str().unwrap();
    desk.json(&["init"]);
    desk.json(&["backup", "source"]);
    let before = look(&source);
    let elsewhere = desk.directory.path().join("elsewhere");
    fs::create_dir_all(elsewhere.join("er")).unwrap();
    fs::write(elsewhere.join("er/precious"), "precious").unwrap();
    let outside = look(&elsewhere);

    // Another content, one that is missing, extra ones, another kind, and links that lead out.
    let untouched = fs::metadata(source.join("deep/er/grüße 😀")).unwrap().ino();
    fs::write(source.join("empty"), "not empty").unwrap();
    fs::remove_file(source.join("link")).unwrap();
    fs::create_dir(source.join("link")).unwrap();
    fs::write(source.join("link/inside"), "inside").unwrap();
    fs::create_dir_all(source.join("extra/sub")).unwrap();
    fs::write(source.join("extra/sub/file"), vec![1; 1000]).unwrap();
    symlink(&elsewhere, source.join("extra/out")).unwrap();
    fs::remove_dir_all(source.join("cache")).unwrap();
    symlink(&elsewhere, source.join("cache")).unwrap();
    let hurt = look(&source);

    let restore = ["restore", "latest", "--path", at, "--target", at];
    let with = |more: &[&'static str]| [&restore[..], more].concat();
    desk.run(&restore).fails(4, "is not empty");
    desk.run(&["restore", "latest", "--target", at, "--in-place"]).fails(2, "--path");
    desk.run(&with(&["--keep-extra"])).fails(2, "--in-place");
    let refused = desk.run(&with(&["--in-place"]));
    refused.fails(2, "needs a confirmation");
    let dry = desk.json(&with(&["--in-place", "--dry-run"]));
    // extra, extra/sub, extra/sub/file, extra/out, link, link/inside, cache
    assert_eq!(
        (&dry["removed"], &dry["removedBytes"], &dry["replaced"]),
        (&7.into(), &1006.into(), &1.into()),
        "{dry}"
    );
    // cache, cache/x, cache/x/big, link
    assert_eq!((&dry["added"], &dry["unchanged"]), (&4.into(), &3.into()), "{dry}");
    let mut paths: Vec<_> = dry["lost"].as_array().unwrap().iter().map(|l| l["path"].as_str().unwrap()).collect();
    paths.sort_unstable();
    assert_eq!(paths, ["cache", "empty", "extra", "link"], "{dry}");
    let text = desk.run(&with(&["--in-place", "--dry-run"])).stdout;
    assert!(text.contains("7 removed") && text.contains("nothing was done") && text.contains("extra: "), "{text}");
    let kept = desk.json(&with(&["--in-place", "--keep-extra", "--dry-run"]));
    assert_eq!((&kept["removed"], &kept["replaced"]), (&3.into(), &1.into()), "only what is in the way: {kept}");
    assert_eq!(look(&source), hurt, "nothing was touched so far");

    let some = desk.json(&with(&["--in-place", "--keep-extra", "--yes"]));
    assert_eq!(some["removedEntries"], 2, "a directory where a link goes, and the reverse: {some}");
    assert!(source.join("extra/sub/file").exists() && source.join("extra/out").is_symlink());
    assert_eq!(look(&elsewhere), outside);
    let done = desk.json(&with(&["--in-place", "--yes"]));
    assert_eq!((&done["removedEntries"], &done["writtenBytes"]), (&1.into(), &0.into()), "{done}");
    assert_eq!(look(&source), before);
    assert_eq!(fs::metadata(source.join("deep/er/grüße 😀")).unwrap().ino(), untouched, "what is the same stays");
    assert_eq!(look(&elsewhere), outside, "a link is removed and never followed");

    // What loses nothing is not asked about.
    fs::remove_file(source.join("note")).unwrap();
    desk.json(&with(&["--in-place"]));
    assert_eq!(look(&source), before);
    // A target that is a link is none.
    symlink(&elsewhere, desk.directory.path().join("way out")).unwrap();
    let way_out = desk.path("way out");
    desk.run(&["restore", "latest", "--path", at, "--target", &way_out, "--in-place", "--yes"]).fails(1, "way out");
    assert_eq!(look(&elsewhere), outside);
    // Neither what is read from nor what opens it is overwritten.
    let all = desk.path("");
    desk.run(&["restore", "latest", "--path", at, "--target", &all, "--in-place", "--yes"]).fails(6, "the repository");
    let inside = format!("{}/data", desk.repository);
    desk.run(&["restore", "latest", "--path", at, "--target", &inside, "--in-place", "--yes"])
        .fails(6, "in the repository");
    fs::create_dir(desk.path("safe")).unwrap();
    fs::rename(desk.path("password"), desk.path("safe/password")).unwrap();
    let place = ["--repo", &desk.repository, "--password-file", "safe/password", "--in-place", "--yes"];
    let answer =
        desk.run_raw(&[&["restore", "latest", "--path", at, "--target", &desk.path("safe")], &place[..]].concat());
    answer.fails(6, "the password file");
    assert!(desk.directory.path().join("safe/password").exists());
}

#[test]
fn p14_a_backup_that_cannot_read_a_file_fails_and_names_it() {
    let desk = Desk::new();
    desk.json(&["init"]);
    fs::set_permissions(desk.source().join("deep/er/grüße 😀"), fs::Permissions::from_mode(0o0)).unwrap();
    // What keeps others out keeps root out only when it gave up what opens everything.
    let mut command = if rustix::process::geteuid().is_root() {
        let mut command = desk.command("setpriv");
        command.args(["--bounding-set=-dac_override,-dac_read_search", env!("CARGO_BIN_EXE_perennial")]);
        command
    } else {
        desk.command(env!("CARGO_BIN_EXE_perennial"))
    };
    command.args(["repository", "backup", "source", "--repo", &desk.repository, "--password-file", "password"]);
    answer(&mut command).fails(1, "deep/er/grüße 😀");
    assert_eq!(desk.json(&["snapshots"]), Value::Array(vec![]), "what is not complete is no snapshot");
    let without = command.args(["--exclude", "source/deep/er/grüße 😀"]);
    assert_eq!(answer(without).code, 0);
}

#[test]
fn a_snapshot_of_a_server_is_not_forgotten_by_hand() {
    let desk = Desk::new();
    desk.json(&["init"]);
    desk.restic(&["backup", "source", "--tag", "pod:1", "--tag", "generation:2"]);
    desk.run(&["forget", "latest", "--yes"]).fails(4, "belongs to a server (pod:1)");
    assert_eq!(desk.json(&["snapshots"]).as_array().unwrap().len(), 1);
}

#[test]
fn a_snapshot_file_that_is_damaged_keeps_no_other_from_being_copied() {
    let desk = Desk::new();
    desk.json(&["init"]);
    let whole = desk.json(&["backup", "source"])["snapshot"].clone();
    fs::write(desk.source().join("more"), "more").unwrap();
    let hurt = desk.json(&["backup", "source"])["snapshot"].as_str().unwrap().to_owned();
    let file = Path::new(&desk.repository).join("snapshots").join(hurt);
    let mut bytes = fs::read(&file).unwrap();
    bytes[20] ^= 1;
    fs::write(&file, bytes).unwrap();
    let other = desk.path("other");
    desk.run_raw(&["init", "--repo", &other, "--password-command", "echo another one"]);
    let copy = ["copy", "--to", &other, "--to-password-command", "echo another one", "--output", "json"];
    let answer = desk.run(&copy);
    answer.fails_in_json(1, "1 snapshots are damaged");
    let report: Value = serde_json::from_str(&answer.stdout).unwrap();
    assert_eq!((&report["snapshots"][0]["snapshot"], report["failed"].as_array().unwrap().len()), (&whole, 1));
}

#[test]
fn damage_is_found_and_told_by_the_exit_code() {
    let desk = Desk::new();
    // The pack of the data is the largest.
    fs::write(desk.source().join("noise"), noise(160_000)).unwrap();
    desk.json(&["init"]);
    desk.json(&["backup", "source"]);
    let data = Path::new(&desk.repository).join("data");
    let packs = fs::read_dir(data).unwrap().flat_map(|dir| fs::read_dir(dir.unwrap().path()).unwrap());
    let largest = packs.map(Result::unwrap).max_by_key(|pack| pack.metadata().unwrap().len()).unwrap().path();
    let mut bytes = fs::read(&largest).unwrap();
    bytes[10] ^= 1;
    fs::write(&largest, bytes).unwrap();
    assert_eq!(desk.run(&["check"]).code, 0, "what is damaged inside is not looked at");
    let found = desk.run(&["check", "--read-data"]);
    found.fails(1, "1 problems");
    assert!(found.stdout.contains(largest.file_name().unwrap().to_str().unwrap()), "{}", found.stdout);

    let snapshot = desk.json(&["snapshots"])[0]["id"].as_str().unwrap().to_owned();
    let dry = desk.run(&["repair", "--dry-run"]);
    dry.fails(1, "1 snapshots are hurt");
    assert!(dry.stdout.contains("nothing was done") && largest.exists(), "{}", dry.stdout);
    let done = desk.run(&["repair", "--output", "json"]);
    done.fails_in_json(1, "back the same directories up again");
    let report: Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(
        (&report["hurt"][0]["snapshot"], &report["damagedPacks"][0]["fate"]),
        (&Value::from(snapshot.as_str()), &Value::from("setAside"))
    );
    assert!(!largest.exists());
    desk.run(&["check", "--read-data"]).fails(1, "repository repair");
    // What is still there heals, though it is unchanged.
    desk.json(&["backup", "source"]);
    assert_eq!(desk.json(&["check", "--read-data"])["problems"], Value::Array(vec![]));
    let text = desk.run(&["repair"]);
    assert!(text.code == 0 && text.stdout.contains("there is nothing to repair"), "{}", text.stdout);
    desk.json(&["restore", &snapshot, "--target", &desk.path("healed")]);
}

#[test]
fn an_interrupted_backup_leaves_no_lock_and_no_snapshot() {
    let desk = Desk::new();
    desk.json(&["init"]);
    // Four packs, of which the limit lets about one a second pass.
    fs::write(desk.source().join("noise"), noise(64 << 20)).unwrap();
    let mut command = desk.command(env!("CARGO_BIN_EXE_perennial"));
    command.args(["repository", "backup", "source", "--repo", &desk.repository, "--password-file", "password"]);
    let mut child = command.args(["--limit-upload", "16384"]).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let repository = PathBuf::from(&desk.repository);
    let count = |kind: &str| fs::read_dir(repository.join(kind)).unwrap().count();
    while count("locks") == 0 {
        assert!(child.try_wait().unwrap().is_none(), "it ended too soon");
        std::thread::yield_now();
    }
    let id = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(id, rustix::process::Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert!(stderr.contains("cancelled"), "{stderr}");
    assert_eq!((count("locks"), count("snapshots")), (0, 0));
    desk.json(&["backup", "source"]);
    assert_eq!(desk.json(&["check", "--read-data"])["problems"], Value::Array(vec![]));
}
