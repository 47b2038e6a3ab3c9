//! `docs/requirements.md` is exact: every requirement once, every named test exists, and what is missing is on a list.
//!
//! The names of tests are read from the sources, so that tests of all crates and engines count, whatever is built.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Every requirement there is: the numbers of each list.
const IDS: [(&str, &str); 7] = [
    ("S0.", "1-45 47-48"),
    ("S1.", "1-39 41-47 51-52"),
    ("S2.", "1-45 47-59"),
    ("S3.", "1-11 16-20 22-36 38-54"),
    ("S4.", "1-7 9-27 30 32-58"),
    ("X.", "1-6 8-22"),
    ("D", "1-45"),
];

/// What the first slice has to prove and does not yet. It only gets shorter.
const MISSING: &[(&str, &str)] = &[];

/// The parts of `./dev bench`.
const BENCHES: &str = "crates/perennial/benches/numbers";

/// How what is not yet begun is named.
const PLANNED: [&str; 2] = ["(issue ", "(later"];

/// Macros that make tests: what begins their list, and which words in it are names.
const MACROS: [(&str, Names); 4] = [
    ("sweeps! {", Names::BeforeColon),
    ("cases!(", Names::Words),
    ("$callback! {", Names::WordsAfterColon),
    ("on_both! {", Names::AfterArrow),
];

#[derive(Clone, Copy)]
enum Names {
    /// `name: …;`
    BeforeColon,
    /// `name, name`
    Words,
    /// `module: name name;`
    WordsAfterColon,
    /// `function => name, name;`
    AfterArrow,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn ids() -> Vec<String> {
    let mut all = Vec::new();
    for (list, numbers) in IDS {
        for range in numbers.split(' ') {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last): (u32, u32) = (first.parse().unwrap(), last.parse().unwrap());
            all.extend((first..=last).map(|n| format!("{list}{n}")));
        }
    }
    all
}

/// The rows of the table: id and proof.
fn rows(document: &str) -> Vec<(String, String)> {
    document
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"))
        .filter_map(|line| {
            let (id, rest) = line.split_once(" | ")?;
            let (_, proof) = rest.rsplit_once(" | ")?;
            Some((id.to_owned(), proof.to_owned()))
        })
        .filter(|(id, _)| id != "id")
        .collect()
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|w| !w.is_empty())
}

/// The names of the tests in one source file.
fn tests_in(source: &str) -> Vec<String> {
    let code: String = source.lines().filter(|l| !l.trim_start().starts_with("//")).map(|l| format!("{l}\n")).collect();
    let mut names = Vec::new();
    for attribute in ["#[test]", "#[tokio::test"] {
        for (at, _) in code.match_indices(attribute) {
            // Other attributes may stand between; a name with a dollar sign is a macro's.
            let name = code[at..].split_once("fn ").map(|(_, rest)| rest);
            names.extend(name.and_then(|n| n.split('(').next()).filter(|n| !n.starts_with('$')).map(str::to_owned));
        }
    }
    for (begin, kind) in MACROS {
        for (at, _) in code.match_indices(begin) {
            let end = if begin.ends_with('(') { ')' } else { '}' };
            let list = code[at + begin.len()..].split(end).next().unwrap_or_default();
            for item in list.split(';') {
                let part = match kind {
                    Names::BeforeColon => item.split(':').next(),
                    Names::Words => Some(item),
                    Names::WordsAfterColon => item.split_once(':').map(|(_, names)| names),
                    Names::AfterArrow => item.split_once("=>").map(|(_, names)| names),
                };
                names.extend(words(part.unwrap_or_default()).map(str::to_owned));
            }
        }
    }
    names
}

/// Every test of the workspace, by name.
fn tests() -> BTreeSet<String> {
    let mut files = Vec::new();
    sources(&root().join("crates"), &mut files);
    files.iter().flat_map(|file| tests_in(&std::fs::read_to_string(file).unwrap())).collect()
}

/// What is wrong with one proof; the pieces that issue 2 still owes go into `missing`.
fn check(
    id: &str,
    proof: &str,
    tests: &BTreeSet<String>,
    missing: &mut BTreeMap<String, Vec<String>>,
) -> Result<(), String> {
    for part in proof.split("; ") {
        if part.starts_with('`') {
            for name in part.split(", ") {
                let name = name.strip_prefix('`').and_then(|n| n.strip_suffix('`')).ok_or(format!("what is {name}"))?;
                if !tests.contains(name) {
                    return Err(format!("there is no test {name}"));
                }
            }
        } else if let Some(name) = part.strip_prefix("bench ") {
            if name.contains('/') || !root().join(BENCHES).join(format!("{}.rs", name.replace('-', "_"))).is_file() {
                return Err(format!("there is no bench {name}"));
            }
        } else if let Some(decision) = part.strip_prefix("decision ") {
            if decision == id || !decision.starts_with('D') || !ids().iter().any(|i| i == decision) {
                return Err(format!("there is no other decision {decision}"));
            }
        } else if let Some(piece) = part.strip_prefix("planned (issue 2: ").and_then(|p| p.strip_suffix(')')) {
            missing.entry(piece.to_owned()).or_default().push(id.to_owned());
        } else if let Some(what) = part.strip_prefix("planned ") {
            if !PLANNED.iter().any(|p| what.starts_with(p)) || what.starts_with("(issue 2") || !what.ends_with(')') {
                return Err(format!("{part}: say which issue, and for issue 2 what is missing"));
            }
        } else if part.strip_prefix("not ours: ").is_none_or(str::is_empty) {
            return Err(format!("{part:?} is no proof"));
        }
    }
    Ok(())
}

fn document() -> String {
    std::fs::read_to_string(root().join("docs/requirements.md")).unwrap()
}

#[test]
fn every_requirement_is_there_exactly_once() {
    let found: Vec<String> = rows(&document()).into_iter().map(|(id, _)| id).collect();
    let mut sorted = found.clone();
    sorted.sort_unstable();
    let mut expected = ids();
    expected.sort_unstable();
    assert_eq!(sorted, expected);
    // Beside a checkout of the design, its list is compared too.
    let design = root().join("../shared/design/requirements.md");
    if let Ok(text) = std::fs::read_to_string(design) {
        let of_line =
            |l: &str| l.strip_prefix("- **").map(|l| l.split([' ', '*']).next().unwrap_or_default().to_owned());
        let designed: BTreeSet<String> = text.lines().filter_map(of_line).collect();
        assert_eq!(designed, found.into_iter().collect());
    }
}

#[test]
fn every_proof_exists_and_nothing_else_is_missing() {
    let tests = tests();
    let mut missing = BTreeMap::new();
    let wrong: Vec<String> = rows(&document())
        .iter()
        .filter_map(|(id, proof)| check(id, proof, &tests, &mut missing).err().map(|e| format!("{id}: {e}")))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let listed: BTreeMap<String, Vec<String>> =
        MISSING.iter().map(|(piece, ids)| ((*piece).to_owned(), ids.split(' ').map(str::to_owned).collect())).collect();
    assert_eq!(missing, listed, "what is missing in the document, and what this test allows to be missing");
}

#[test]
fn names_of_tests_are_found_and_wrong_proofs_are_not_believed() {
    let source = "#[test]\nfn one() {}\n#[tokio::test(flavor = \"x\")]\n#[ignore]\nasync fn two() {}\n// #[test] fn no() {}\n\
        #[test]\nfn $name() {}\nsweeps! {\n three: A on B;\n}\ncases!(\n four,\n five,\n);\n\
        on_both! {\n run => six, seven;\n}\n$callback! {\n sets:\n eight\n nine;\n}\n";
    let found: BTreeSet<String> = tests_in(source).into_iter().collect();
    let expected = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"];
    assert_eq!(found, expected.map(str::to_owned).into());

    let mut missing = BTreeMap::new();
    let mut says = |proof: &str| check("S0.1", proof, &found, &mut missing).is_ok();
    for good in [
        "`one`, `two`; decision D1",
        "planned (issue 3)",
        "planned (later: it)",
        "not ours: no",
        "`one`; planned (issue 2: it)",
        "bench docker",
    ] {
        assert!(says(good), "{good}");
    }
    for bad in [
        "`onee`",
        "one",
        "",
        "decision D46",
        "bench nothing",
        "bench ../numbers/docker",
        "planned",
        "planned (issue 2)",
        "to prove",
        "not ours: ",
        "`one`; ",
        "`one` `two`",
    ] {
        assert!(!says(bad), "{bad}");
    }
    assert_eq!(missing, BTreeMap::from([("it".to_owned(), vec!["S0.1".to_owned()])]));
}
