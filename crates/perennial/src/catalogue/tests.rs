use perennial_core::service::EnvValue;

use super::*;

mod shipped;
mod written;

/// A good service, line by line.
const GOOD: &str = r#"name = "n8n"
title = "n8n"
[[plans]]
name = "basic"
image = "n8n:1"
profile = "declared"
ports = [5678]
stop_timeout = "30s"
[plans.resources]
cpus = 1.5
memory = "512Mi"
[[plans.volumes]]
name = "data"
mount_path = "/data"
size = "250Mi"
[plans.env]
PORT = "5678"
KEY = { generate = { length = 32 } }
[plans.health]
http = { port = 5678, path = "/healthz" }
[plans.snapshots]
schedule = "0 3 * * *"
[plans.snapshots.keep]
daily = 7
[plans.hooks]
before = { command = ["sync"] }
"#;

/// What is wrong once a line was replaced: place, kind, field.
fn wrong(line: usize, by: &str) -> Vec<((usize, usize), MistakeKind, String)> {
    let lines = GOOD.lines().enumerate().map(|(n, text)| if n + 1 == line { by } else { text });
    let text = lines.collect::<Vec<_>>().join("\n");
    let mistakes = read_toml(&text).expect_err(by);
    for mistake in &mistakes {
        assert!(!mistake.problem.is_empty() && !mistake.hint.is_empty(), "{by}: {mistake:?}");
    }
    mistakes.into_iter().map(|mistake| (mistake.at.expect("a place"), mistake.kind, mistake.field)).collect()
}

#[test]
fn the_good_one_is_good() {
    let service = read_toml(GOOD).expect("no mistakes");
    assert_eq!((service.name.as_str(), service.plans.len()), ("n8n", 1));
}

/// A line, what it is replaced by, and what is wrong then: place, kind, field.
type Case = (usize, &'static str, (usize, usize), MistakeKind, &'static str);

/// Every kind of mistake, at its very place.
#[test]
fn every_mistake_has_its_line_its_column_and_its_field() {
    use MistakeKind::{InvalidValue, Missing, UnknownKey, WrongKind};
    let table: &[Case] = &[
        // Keys.
        (1, "nam = \"n8n\"\nname = \"n8n\"", (1, 1), UnknownKey, "nam"),
        (2, "colour = 1", (2, 1), UnknownKey, "colour"),
        (5, "image = \"a\"\nmemory = \"1Gi\"", (6, 1), UnknownKey, "plans[0].memory"),
        (10, "cpu = 1.5", (10, 1), UnknownKey, "plans[0].resources.cpu"),
        (14, "mount_path = \"/data\"\nmountPath = \"/data\"", (15, 1), UnknownKey, "plans[0].volumes[0].mountPath"),
        (18, "KEY = { generate = { length = 32, seed = 1 } }", (18, 35), UnknownKey, "plans[0].env.KEY.generate.seed"),
        (20, "http = { port = 1, url = \"/\" }", (20, 20), UnknownKey, "plans[0].health.http.url"),
        (24, "dayly = 7", (24, 1), UnknownKey, "plans[0].snapshots.keep.dayly"),
        (26, "before = { command = [\"a\"], shell = true }", (26, 29), UnknownKey, "plans[0].hooks.before.shell"),
        // What has to be there.
        (1, "", (1, 1), Missing, "name"),
        (4, "", (3, 1), Missing, "plans[0].name"),
        (5, "", (3, 1), Missing, "plans[0].image"),
        (13, "", (12, 1), Missing, "plans[0].volumes[0].name"),
        (14, "", (12, 1), Missing, "plans[0].volumes[0].mount_path"),
        (18, "KEY = { generate = { alphabet = \"hex\" } }", (18, 20), Missing, "plans[0].env.KEY.generate.length"),
        (20, "http = { path = \"/\" }", (20, 8), Missing, "plans[0].health.http.port"),
        // Kinds.
        (1, "name = 8", (1, 8), WrongKind, "name"),
        (2, "title = true", (2, 9), WrongKind, "title"),
        (7, "ports = 5678", (7, 9), WrongKind, "plans[0].ports"),
        (7, "ports = [\"http\"]", (7, 10), WrongKind, "plans[0].ports[0]"),
        (7, "command = \"sh\"", (7, 11), WrongKind, "plans[0].command"),
        (7, "command = [\"sh\", 1]", (7, 18), WrongKind, "plans[0].command[1]"),
        (10, "cpus = \"two\"", (10, 8), WrongKind, "plans[0].resources.cpus"),
        (11, "memory = [1]", (11, 10), WrongKind, "plans[0].resources.memory"),
        (15, "size = true", (15, 8), WrongKind, "plans[0].volumes[0].size"),
        (17, "PORT = 5678", (17, 8), WrongKind, "plans[0].env.PORT"),
        (18, "KEY = { value = \"x\", plain = \"yes\" }", (18, 30), WrongKind, "plans[0].env.KEY.plain"),
        (20, "http = 5678", (20, 8), WrongKind, "plans[0].health.http"),
        (22, "schedule = 3", (22, 12), WrongKind, "plans[0].snapshots.schedule"),
        (22, "schedule = 2026-01-01", (22, 12), WrongKind, "plans[0].snapshots.schedule"),
        (24, "daily = \"seven\"", (24, 9), WrongKind, "plans[0].snapshots.keep.daily"),
        (26, "before = \"sync\"", (26, 10), WrongKind, "plans[0].hooks.before"),
        // Values.
        (1, "name = \"N8N\"", (1, 8), InvalidValue, "name"),
        (2, "title = \"\"", (2, 9), InvalidValue, "title"),
        (4, "name = \"../x\"", (4, 8), InvalidValue, "plans[0].name"),
        (5, "image = \"a b\"", (5, 9), InvalidValue, "plans[0].image"),
        (6, "profile = \"universe\"", (6, 11), InvalidValue, "plans[0].profile"),
        (7, "ports = [70000]", (7, 10), InvalidValue, "plans[0].ports[0]"),
        (7, "ports = [0]", (7, 10), InvalidValue, "plans[0].ports[0]"),
        (7, "ports = [80, -1]", (7, 14), InvalidValue, "plans[0].ports[1]"),
        (7, "ports = [80, 80]", (7, 14), InvalidValue, "plans[0].ports[1]"),
        (7, "user = \"a b\"", (7, 8), InvalidValue, "plans[0].user"),
        (7, "working_dir = \"data\"", (7, 15), InvalidValue, "plans[0].working_dir"),
        (7, "on_stop = \"stop\"", (7, 11), InvalidValue, "plans[0].on_stop"),
        (7, "stop_signal = \"SIGNONE\"", (7, 15), InvalidValue, "plans[0].stop_signal"),
        (8, "stop_timeout = \"soon\"", (8, 16), InvalidValue, "plans[0].stop_timeout"),
        (8, "stop_timeout = \"2h\"", (8, 16), InvalidValue, "plans[0].stop_timeout"),
        (8, "stop_timeout = \"-1s\"", (8, 16), InvalidValue, "plans[0].stop_timeout"),
        (10, "cpus = -1", (10, 8), InvalidValue, "plans[0].resources.cpus"),
        (10, "cpus = 5000", (10, 8), InvalidValue, "plans[0].resources.cpus"),
        (11, "memory = \"512MB\"", (11, 10), InvalidValue, "plans[0].resources.memory"),
        (11, "memory = \"1Ki\"", (11, 10), InvalidValue, "plans[0].resources.memory"),
        (11, "memory = -5", (11, 10), InvalidValue, "plans[0].resources.memory"),
        (11, "memory = 99999999999999999999", (11, 10), InvalidValue, "plans[0].resources.memory"),
        (11, "memory_swap = \"1Gi\"", (11, 15), InvalidValue, "plans[0].resources.memory_swap"),
        (
            11,
            "memory = \"1Gi\"\nmemory_reservation = \"2Gi\"",
            (12, 22),
            InvalidValue,
            "plans[0].resources.memory_reservation",
        ),
        (11, "disk = \"100Mi\"", (11, 8), InvalidValue, "plans[0].resources.disk"),
        (11, "pids = 1", (11, 8), InvalidValue, "plans[0].resources.pids"),
        (11, "pids = 1.5", (11, 8), InvalidValue, "plans[0].resources.pids"),
        (14, "mount_path = \"data\"", (14, 14), InvalidValue, "plans[0].volumes[0].mount_path"),
        (14, "mount_path = \"/proc\"", (14, 14), InvalidValue, "plans[0].volumes[0].mount_path"),
        (15, "size = \"lots\"", (15, 8), InvalidValue, "plans[0].volumes[0].size"),
        (
            15,
            "size = \"20Mi\"\naccess_mode = \"ReadWriteMany\"",
            (16, 15),
            InvalidValue,
            "plans[0].volumes[0].access_mode",
        ),
        (15, "storage_class = \"A B\"", (15, 17), InvalidValue, "plans[0].volumes[0].storage_class"),
        (17, "DB_PASSWORD = \"hunter2\"", (17, 15), InvalidValue, "plans[0].env.DB_PASSWORD"),
        (17, "DB = \"postgres://me:hunter2@db/x\"", (17, 6), InvalidValue, "plans[0].env.DB"),
        (18, "KEY = { value = \"hunter2\" }", (18, 7), InvalidValue, "plans[0].env.KEY"),
        (18, "KEY = {}", (18, 7), InvalidValue, "plans[0].env.KEY"),
        (18, "KEY = { value = \"x\", generate = { length = 32 } }", (18, 7), InvalidValue, "plans[0].env.KEY"),
        (18, "KEY = { generate = { length = 4 } }", (18, 31), InvalidValue, "plans[0].env.KEY.generate.length"),
        (
            18,
            "KEY = { generate = { length = 32, alphabet = \"hexx\" } }",
            (18, 46),
            InvalidValue,
            "plans[0].env.KEY.generate.alphabet",
        ),
        (20, "", (19, 1), InvalidValue, "plans[0].health"),
        (20, "http = { port = 1 }\ntcp = { port = 1 }", (19, 1), InvalidValue, "plans[0].health"),
        (20, "http = { port = 70000 }", (20, 17), InvalidValue, "plans[0].health.http.port"),
        (20, "http = { port = 1, path = \"x\" }", (20, 27), InvalidValue, "plans[0].health.http.path"),
        (20, "exec = { command = [] }", (20, 20), InvalidValue, "plans[0].health.exec.command"),
        (
            20,
            "tcp = { port = 1 }\ninterval = \"5s\"\ntimeout = \"6s\"",
            (22, 11),
            InvalidValue,
            "plans[0].health.timeout",
        ),
        (20, "tcp = { port = 1 }\nretries = 0", (21, 11), InvalidValue, "plans[0].health.retries"),
        (22, "schedule = \"61 * * * *\"", (22, 12), InvalidValue, "plans[0].snapshots.schedule"),
        (22, "schedule = \"0 0 31 2 *\"", (22, 12), InvalidValue, "plans[0].snapshots.schedule"),
        (22, "time_zone = \"Mars\"", (22, 13), InvalidValue, "plans[0].snapshots.time_zone"),
        (24, "daily = 999999", (24, 9), InvalidValue, "plans[0].snapshots.keep.daily"),
        (24, "within = \"soon\"", (24, 10), InvalidValue, "plans[0].snapshots.keep.within"),
        (26, "after = { command = [\"a\"] }", (26, 9), InvalidValue, "plans[0].hooks.after"),
        (26, "before = { command = [] }", (26, 22), InvalidValue, "plans[0].hooks.before.command"),
    ];
    let mut unlike = Vec::new();
    for (line, by, at, kind, field) in table {
        let (found, expected) = (wrong(*line, by), [(*at, *kind, (*field).to_owned())]);
        if found != expected {
            unlike.push(format!("{by}: {found:?} and not {expected:?}"));
        }
    }
    assert!(unlike.is_empty(), "{}", unlike.join("\n"));
}

#[test]
fn lists_of_plans_and_volumes_are_looked_at_as_a_whole() {
    let second = |text: &str| read_toml(&format!("{GOOD}{text}")).expect_err(text);
    let found = second("[[plans]]\nname = \"basic\"\nimage = \"a\"\n");
    assert_eq!((found[0].at, found[0].field.as_str()), (Some((28, 8)), "plans[1].name"));
    assert!(found[0].problem.contains("twice"), "{found:?}");
    let found = second("[[plans.volumes]]\nname = \"sub\"\nmount_path = \"/data/sub\"\n");
    assert_eq!((found[0].at, found[0].field.as_str()), (Some((29, 14)), "plans[0].volumes[1].mount_path"));
    assert!(found[0].problem.contains("overlaps"), "{found:?}");
    let no_plans = read_toml("name = \"x\"").expect_err("no plans");
    assert_eq!((no_plans.len(), no_plans[0].kind, no_plans[0].field.as_str()), (1, MistakeKind::Missing, "plans"));
    let empty = read_toml("name = \"x\"\nplans = []").expect_err("no plans");
    assert_eq!((empty.len(), empty[0].at, empty[0].field.as_str()), (1, Some((2, 9)), "plans"));
    // Volumes belong to one profile.
    let universal = wrong(6, "profile = \"universal\"");
    assert_eq!(universal, [((12, 1), MistakeKind::InvalidValue, "plans[0].volumes".to_owned())]);
    let silent = wrong(6, "");
    assert_eq!(silent, universal, "what persists is never guessed");
    let none = "name = \"x\"\n[[plans]]\nname = \"a\"\nimage = \"a\"\nprofile = \"declared\"\n";
    assert_eq!(read_toml(none).expect_err("no volumes")[0].field, "plans[0].volumes");
    assert!(read_toml(&format!("{none}volumes = []\n")).is_ok(), "nothing persists, and that is said");
}

#[test]
fn one_look_finds_all_mistakes_in_the_order_of_the_file() {
    let text = "nmae = \"x\"\nname = 7\n[[plans]]\nname = \"a\"\nimag = \"a\"\nports = [0, 99999]\n[plans.env]\nA_SECRET = \"x\"\n";
    let found: Vec<String> = read_toml(text).expect_err("mistakes").iter().map(ToString::to_string).collect();
    assert_eq!(
        found,
        [
            "1:1: nmae: is not a known key",
            "2:8: name: is a number, expected a text",
            "3:1: plans[0].image: is missing",
            "5:1: plans[0].imag: is not a known key",
            "6:10: plans[0].ports[0]: 0 is out of range",
            "6:13: plans[0].ports[1]: 99999 is out of range",
            "8:12: plans[0].env.A_SECRET: looks like a secret, and stands here in plain",
        ]
    );
}

#[test]
fn the_nearest_known_key_is_named() {
    let hint = |line, by: &str| {
        let lines = GOOD.lines().enumerate().map(|(n, text)| if n + 1 == line { by } else { text });
        read_toml(&lines.collect::<Vec<_>>().join("\n")).expect_err(by)[0].hint.clone()
    };
    assert!(hint(11, "memory_reservaton = \"1Gi\"").starts_with("did you mean memory_reservation?"));
    assert!(hint(8, "stoptimeout = \"1s\"").starts_with("did you mean stop_timeout?"));
    let far = hint(11, "colour = \"red\"");
    assert!(far.starts_with("keys here are ") && far.contains("memory_swap"), "{far}");
    assert!(hint(6, "profile = \"declard\"").starts_with("did you mean declared?"));
}

#[test]
fn no_mistake_repeats_a_secret() {
    let text = GOOD.replace("PORT = \"5678\"", "DB_PASSWORD = \"hunter2\"\nURL = \"postgres://me:hunter2@db/x\"");
    for mistake in read_toml(&text).expect_err("secrets in plain") {
        assert!(!format!("{mistake:?}").contains("hunter2"), "{mistake:?}");
        assert!(mistake.hint.contains("generate") && mistake.hint.contains("plain = true"), "{mistake:?}");
    }
    // By choice.
    let text = GOOD.replace("PORT = \"5678\"", "DB_PASSWORD = { value = \"hunter2\", plain = true }");
    let service = read_toml(&text).expect("it was chosen");
    assert_eq!(service.plans[0].env["DB_PASSWORD"], EnvValue::Plain("hunter2".to_owned()));
}

#[test]
fn broken_syntax_is_told_line_by_line_and_invents_nothing() {
    let text = "name = n8n\ntitle = \"x\"\n[[plans]]\nname = \"a\"\nimage = \"a\ncolour = 1\nports = [1, 2\n";
    let found = read_toml(text).expect_err("no TOML");
    assert!(found.iter().any(|mistake| mistake.kind == MistakeKind::Syntax && mistake.at.is_some_and(|at| at.0 == 1)));
    assert!(found.iter().any(|mistake| mistake.kind == MistakeKind::Syntax && mistake.at.is_some_and(|at| at.0 >= 5)));
    assert!(found.iter().all(|mistake| mistake.kind != MistakeKind::Missing), "{found:?}");
    // A key that is there twice.
    let twice = read_toml("name = \"a\"\nname = \"b\"\n").expect_err("twice");
    assert_eq!((twice[0].kind, twice[0].at.map(|at| at.0)), (MistakeKind::Syntax, Some(2)));
    assert_eq!(read_toml(&"#".repeat(DOCUMENT_MAX + 1)).expect_err("too long").len(), 1);
}

#[test]
fn a_file_of_another_kind_is_told_in_bounds() {
    let many: String = (0..500).map(|n| format!("key{n} = 1\n")).collect();
    let found = read_toml(&many).expect_err("nothing of it is known");
    assert_eq!(found.len(), super::mistake::MISTAKES_MAX + 1);
    assert!(found.last().is_some_and(|last| last.problem.contains("more")), "{found:?}");
}

#[test]
fn json_is_read_by_the_same_rules_with_its_own_keys() {
    let service = read_toml(GOOD).expect("good");
    let json = serde_json::to_string(&definition(&service)).expect("json");
    assert!(json.contains("\"mountPath\":\"/data\"") && !json.contains("mount_path"), "{json}");
    assert_eq!(read_json(json.as_bytes()), Ok(service));
    let wrong = |json: &str| {
        let found = read_json(json.as_bytes()).expect_err(json);
        found.into_iter().map(|mistake| (mistake.at, mistake.kind, mistake.field)).collect::<Vec<_>>()
    };
    let field = |kind, field: &str| (None, kind, field.to_owned());
    assert_eq!(wrong("{")[0].1, MistakeKind::Syntax);
    assert_eq!(wrong("[]"), [field(MistakeKind::WrongKind, "")]);
    assert_eq!(wrong(r#"{"name":"a","plans":[]}"#), [field(MistakeKind::InvalidValue, "plans")]);
    assert_eq!(
        wrong(r#"{"name":"a","plans":[{"name":"b","image":"c","stop_timeout":1,"stopTimeout":9999}]}"#),
        [
            field(MistakeKind::UnknownKey, "plans[0].stop_timeout"),
            field(MistakeKind::InvalidValue, "plans[0].stopTimeout")
        ]
    );
    // What serde_json would take silently.
    let twice = r#"{"name":"a","name":"b","plans":[{"name":"b","image":"c","env":{"A":"1","A":"2"}}]}"#;
    let found: Vec<String> = wrong(twice).into_iter().map(|(_, _, field)| field).collect();
    assert_eq!(found, ["name", "plans[0].env.A"]);
}

#[test]
fn a_revision_names_a_definition_and_not_a_file() {
    let service = read_toml(GOOD).expect("good");
    let commented =
        read_toml(&format!("# the same\n{}", GOOD.replace("\"250Mi\"", "\"250Mi\" # small"))).expect("good");
    assert_eq!(revision(&service), revision(&commented));
    let other = read_toml(&GOOD.replace("250Mi", "251Mi")).expect("good");
    assert_ne!(revision(&service), revision(&other));
    assert_eq!(revision(&service).len(), 16);
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("a time")
}

#[test]
fn without_a_directory_what_is_shipped_is_in_force() {
    let parent = tempfile::tempdir().expect("a directory");
    let path = parent.path().join("catalogue");
    let shipped = Files::shipped();
    let (files, looked) = shipped.look(&Place::Usual(path.clone()), at(1));
    assert_eq!((&files, looked), (&*shipped, Looked::default()));
    // One that was named has to be there: perhaps its disk is not mounted.
    let (files, looked) = shipped.look(&Place::Named(path.clone()), at(1));
    assert_eq!(files.kept, shipped.kept);
    assert_eq!(looked.refused.len(), 1, "{looked:?}");
    assert!(files.refused.contains_key(&path.display().to_string()));
    std::fs::create_dir(&path).expect("make it");
    let (files, _) = files.look(&Place::Named(path), at(2));
    assert_eq!((files.origin, files.kept.len(), files.refused.len()), (Origin::Directory, 0, 0), "empty is empty");
}

#[test]
fn a_file_with_mistakes_keeps_its_former_version_in_force() {
    let directory = tempfile::tempdir().expect("a directory");
    let place = Place::Usual(directory.path().to_owned());
    let write = |file: &str, text: &str| std::fs::write(directory.path().join(file), text).expect("write");
    write("n8n.toml", GOOD);
    write("other.toml", "nonsense");
    write(".n8n.toml.swp", "nonsense");
    write("README", "nonsense");
    let (first, looked) = Files::shipped().look(&place, at(1));
    assert_eq!(first.kept.len(), 1, "what is shipped is not beside it");
    assert_eq!(first.refused.keys().collect::<Vec<_>>(), ["other.toml"]);
    assert!(looked.changed.contains(&"n8n".to_owned()) && looked.changed.contains(&"ghost".to_owned()));
    assert_eq!(looked.refused[0].0, "other.toml");
    let kept = |files: &Files| files.kept.values().next().cloned().expect("the service");

    write("n8n.toml", &GOOD.replace("250Mi", "lots"));
    let (second, looked) = first.look(&place, at(2));
    assert_eq!(kept(&second).service, kept(&first).service, "the version before stays");
    let refused = kept(&second).refused.expect("it is said");
    assert_eq!((refused.since, refused.mistakes[0].at), (at(2), Some((15, 8))));
    assert_eq!((looked.changed.len(), looked.refused.len()), (0, 1), "what was known is no news: {looked:?}");
    let (third, looked) = second.look(&place, at(3));
    assert_eq!((third, looked), (second.clone(), Looked::default()), "also not since when");

    write("n8n.toml", &GOOD.replace("250Mi", "300Mi"));
    std::fs::remove_file(directory.path().join("other.toml")).expect("remove");
    let (fourth, looked) = second.look(&place, at(4));
    assert_eq!((kept(&fourth).refused, fourth.refused.len()), (None, 0));
    assert_eq!(looked.changed, ["n8n"]);
    std::fs::remove_file(directory.path().join("n8n.toml")).expect("remove");
    let (fifth, looked) = fourth.look(&place, at(5));
    assert_eq!((fifth.kept.len(), looked.changed), (0, vec!["n8n".to_owned()]), "a file that is gone is gone");
}

#[test]
fn a_service_comes_from_one_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let write = |file: &str, text: &str| std::fs::write(directory.path().join(file), text).expect("write");
    write("a.toml", GOOD);
    write("b.toml", &GOOD.replace("250Mi", "300Mi"));
    let (files, _) = Files::shipped().look(&Place::Usual(directory.path().to_owned()), at(1));
    assert_eq!(files.kept.values().map(|kept| kept.file.as_str()).collect::<Vec<_>>(), ["a.toml"]);
    assert!(files.refused["b.toml"].mistakes[0].problem.contains("a.toml"), "{:?}", files.refused);
    // What cannot be opened, or is no file, is told and holds nothing up.
    std::fs::create_dir(directory.path().join("c.toml")).expect("make a directory");
    std::os::unix::fs::symlink("/nowhere", directory.path().join("d.toml")).expect("make a link");
    let (files, _) = files.look(&Place::Usual(directory.path().to_owned()), at(2));
    assert_eq!(files.refused.keys().collect::<Vec<_>>(), ["b.toml", "c.toml", "d.toml"]);
}
