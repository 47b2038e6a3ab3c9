//! Parts of a data set: what a restore replaces when it does not replace everything.

use crate::error::Error;
use crate::spec::is_at_or_below;
use crate::volume::{NEVER_PERSISTED, SYSTEM_NAME};

/// Most volumes, and most paths, that are chosen at once.
const CHOSEN_MAX: usize = 1000;
/// Longest path in bytes; no system makes longer ones by name.
const PATH_MAX: usize = 4096;

/// Which parts are replaced; everything else stays as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    /// Names of whole volumes; `system` is the system layer. None twice.
    pub volumes: Vec<String>,
    /// Absolute paths as the pod sees them, without `.`, `..`, doubled or trailing slashes; none within another.
    pub paths: Vec<String>,
    /// What happens to files in chosen directories that the snapshot lacks.
    pub extra: Extra,
}

/// What happens to files that the snapshot lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Extra {
    /// They are removed: a chosen directory becomes what it was.
    #[default]
    Remove,
    /// They are kept.
    Keep,
}

/// A chosen part, where it is stored.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Selection {
    /// The volume; `None` for the system layer.
    pub volume: Option<String>,
    /// The path relative to where that is mounted, without slashes at either end; empty for all of it.
    pub path: String,
}

impl Parts {
    /// Checks what somebody chose and brings it into one form; `None` when nothing was chosen.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] naming `volumes` or `paths`.
    pub fn new(volumes: Vec<String>, paths: Vec<String>, extra: Extra) -> Result<Option<Self>, Error> {
        for (field, chosen) in [("volumes", volumes.len()), ("paths", paths.len())] {
            if chosen > CHOSEN_MAX {
                let hint = "choose a directory that holds them";
                return Err(Error::invalid(field, format!("has more than {CHOSEN_MAX} entries"), hint));
            }
        }
        let mut volumes = volumes;
        volumes.sort_unstable();
        volumes.dedup();
        let mut normal: Vec<String> = paths.iter().map(|path| normal(path)).collect::<Result<_, _>>()?;
        normal.sort_unstable();
        normal.dedup();
        let within = |path: &String| normal.iter().any(|other| other != path && is_at_or_below(path, other));
        let paths: Vec<String> = normal.iter().filter(|path| !within(path)).cloned().collect();
        let nothing = volumes.is_empty() && paths.is_empty();
        Ok((!nothing).then_some(Self { volumes, paths, extra }))
    }

    /// Finds where the chosen parts are stored, in one order and none within another.
    ///
    /// `volumes` are names and mount paths; `layer` says whether what no volume holds is kept at all.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] naming `volumes` or `paths`.
    pub fn select(&self, volumes: &[(&str, &str)], layer: Layer) -> Result<Vec<Selection>, Error> {
        let whole = |name: &str| Selection { volume: Some(name.to_owned()), path: String::new() };
        let mut found: Vec<Selection> = Vec::new();
        for name in &self.volumes {
            if volumes.iter().any(|(known, _)| known == name) {
                found.push(whole(name));
            } else if name == SYSTEM_NAME && layer == Layer::Kept {
                found.push(Selection { volume: None, path: String::new() });
            } else {
                let mut known: Vec<&str> = volumes.iter().map(|(name, _)| *name).collect();
                known.extend((layer == Layer::Kept).then_some(SYSTEM_NAME));
                let hint = format!("choose from {}", known.join(", "));
                return Err(Error::invalid("volumes", format!("{name:?} is no volume of the snapshot"), hint));
            }
        }
        for path in &self.paths {
            // Volumes that are mounted within it belong to what is seen there.
            let before = found.len();
            found.extend(volumes.iter().filter(|(_, mount)| is_at_or_below(mount, path)).map(|(name, _)| whole(name)));
            match place(volumes, layer, path) {
                Some(part) => found.push(part),
                None if found.len() > before => {}
                None => {
                    let hint = "choose what lies in a volume: perennial pod volumes";
                    return Err(Error::invalid(
                        "paths",
                        format!("{path:?} is in no volume, and the pod keeps nothing else"),
                        hint,
                    ));
                }
            }
        }
        found.sort_unstable();
        found.dedup();
        let all = found.clone();
        found.retain(|part| !all.iter().any(|other| other != part && part.is_within(other)));
        Ok(found)
    }
}

/// Whether a pod keeps what it changes outside its volumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layer {
    /// It is kept as the system layer.
    Kept,
    /// Nothing but volumes is kept.
    None,
}

/// Finds where a path of the pod is stored: in the volume that is mounted nearest above it, else in the system layer.
/// `None` when nobody keeps it. The path has to be normal.
#[must_use]
pub fn place(volumes: &[(&str, &str)], layer: Layer, path: &str) -> Option<Selection> {
    let holders = volumes.iter().filter(|(_, mount)| is_at_or_below(path, mount));
    match holders.max_by_key(|(_, mount)| mount.len()) {
        Some((name, mount)) => {
            let rest = path.get(mount.len()..).unwrap_or_default().trim_start_matches('/');
            Some(Selection { volume: Some((*name).to_owned()), path: rest.to_owned() })
        }
        None if layer == Layer::Kept => Some(Selection { volume: None, path: path.trim_start_matches('/').to_owned() }),
        None => None,
    }
}

impl Selection {
    /// Where it is in a snapshot, such as `/volumes/home/me`.
    #[must_use]
    pub fn stored(&self) -> String {
        let root = self.volume.as_ref().map_or_else(|| "/system".to_owned(), |name| format!("/volumes/{name}"));
        if self.path.is_empty() { root } else { format!("{root}/{}", self.path) }
    }

    fn is_within(&self, other: &Self) -> bool {
        self.volume == other.volume && (other.path.is_empty() || is_at_or_below(&self.path, &other.path))
    }

    /// Whether an entry of a snapshot, such as `/volumes/home/x`, belongs to this part.
    #[must_use]
    pub fn holds(&self, stored: &str) -> bool {
        is_at_or_below(stored, &self.stored())
    }
}

/// One way to write a path.
fn normal(path: &str) -> Result<String, Error> {
    let refuse = |problem: &str, hint: &str| Err(Error::invalid("paths", format!("{path:?} {problem}"), hint));
    if !path.starts_with('/') || path.contains('\0') || path.len() > PATH_MAX {
        return refuse("is not an absolute path", "write it as the pod sees it, such as /home/me/file");
    }
    let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty()).collect();
    if names.iter().any(|name| matches!(*name, "." | "..")) {
        return refuse("contains . or ..", "write the path without them");
    }
    match names.first() {
        None => refuse("is everything", "leave out volumes and paths to restore everything"),
        Some(top) if NEVER_PERSISTED.contains(top) => {
            refuse("is in no snapshot: nothing there persists", "leave it out")
        }
        Some(_) => Ok(format!("/{}", names.join("/"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOLUMES: [(&str, &str); 4] =
        [("home", "/home"), ("usr", "/usr"), ("usr-local", "/usr/local"), ("etc", "/etc")];

    fn own(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| (*s).to_owned()).collect()
    }

    fn parts(volumes: &[&str], paths: &[&str]) -> Result<Option<Parts>, Error> {
        Parts::new(own(volumes), own(paths), Extra::Remove)
    }

    fn selected(volumes: &[&str], paths: &[&str], layer: Layer) -> Result<Vec<String>, Error> {
        let parts = parts(volumes, paths)?.expect("something is chosen");
        let shown = |s: Selection| format!("{}:{}", s.volume.as_deref().unwrap_or("-"), s.path);
        Ok(parts.select(&VOLUMES, layer)?.into_iter().map(shown).collect())
    }

    #[test]
    fn paths_are_written_in_one_way_and_none_lies_in_another() {
        let found = parts(&[], &["/etc//nginx/", "/etc/nginx/conf.d", "/etc/nginx-old", "/etc/nginx"]);
        assert_eq!(found.expect("valid").expect("some").paths, ["/etc/nginx", "/etc/nginx-old"]);
        assert_eq!(parts(&[], &[]).expect("valid"), None);
    }

    #[test]
    fn bad_paths_are_refused_by_name() {
        for bad in ["", "etc", "./etc", "/etc/../root", "/etc/.", "/", "//", "/proc/1", "/tmp", "/run/x", "/a\0b"] {
            let error = parts(&[], &[bad]).expect_err(bad);
            assert!(matches!(&error, Error::InvalidInput { field, .. } if field == "paths"), "{bad}: {error:?}");
        }
        parts(&[], &["/tmpfiles", "/runner", "/home/tmp"]).expect("only the places themselves");
        let many = vec!["/a".to_owned(); CHOSEN_MAX + 1];
        Parts::new(Vec::new(), many, Extra::Keep).expect_err("too many");
    }

    #[test]
    fn parts_are_found_in_the_volume_that_is_mounted_nearest() {
        let kept = |volumes: &[&str], paths: &[&str]| selected(volumes, paths, Layer::Kept).expect("valid");
        assert_eq!(kept(&[], &["/home/me/file"]), ["home:me/file"]);
        assert_eq!(kept(&[], &["/home"]), ["home:"]);
        assert_eq!(kept(&[], &["/homes"]), ["-:homes"]);
        assert_eq!(kept(&[], &["/usr/local/bin"]), ["usr-local:bin"]);
        // What is mounted within a chosen directory is part of it.
        assert_eq!(kept(&[], &["/usr"]), ["usr:", "usr-local:"]);
        // A volume by its name is itself alone.
        assert_eq!(kept(&["usr"], &[]), ["usr:"]);
        assert_eq!(kept(&["system", "home"], &["/home/me", "/data"]), ["-:", "home:"]);
    }

    #[test]
    fn what_the_snapshot_lacks_is_refused_by_name() {
        let field = |result: Result<Vec<String>, Error>| match result {
            Err(Error::InvalidInput { field, hint, .. }) => (field, hint),
            other => panic!("{other:?}"),
        };
        let (name, hint) = field(selected(&["hom"], &[], Layer::Kept));
        assert_eq!((name.as_str(), hint.as_str()), ("volumes", "choose from home, usr, usr-local, etc, system"));
        assert_eq!(field(selected(&["system"], &[], Layer::None)).0, "volumes");
        assert_eq!(field(selected(&[], &["/data"], Layer::None)).0, "paths");
    }

    #[test]
    fn stored_entries_belong_to_their_part() {
        let part =
            |volume: Option<&str>, path: &str| Selection { volume: volume.map(str::to_owned), path: path.into() };
        assert!(part(Some("home"), "me").holds("/volumes/home/me/x"));
        assert!(part(Some("home"), "").holds("/volumes/home"));
        assert!(!part(Some("home"), "me").holds("/volumes/home/me2"));
        assert!(part(None, "data").holds("/system/data/x"));
        assert!(!part(None, "data").holds("/volumes/home/data"));
    }
}
