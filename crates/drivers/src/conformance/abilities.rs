//! What not every engine can do, which cases need it, and whether an engine has what its fixture says.
//!
//! A case never looks the other way: one that needs what the engine lacks is not run, and counted as not applicable with the
//! reason. What an engine lacks is declared by its fixture, and compared with the engine by a case of its own, so that an
//! engine which loses an ability fails instead of being excused.

use std::fmt;

use perennial_core::engine::{Copying, SetAccess};
use perennial_core::spec::Backend;

use super::subject::Subject;
use super::{Checked, Failure, Fixture, cases, check};

/// Something that not every engine can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ability {
    /// This process reaches the directories of the volumes.
    LocalVolumes,
    /// A mover reaches the volumes.
    Mover,
    /// A volume's data lies elsewhere than what the engine knows of the volume.
    Definitions,
    /// The storage copies a set at one instant.
    InstantCopies,
    /// The data's generation is read from beside the data.
    Generations,
    /// A container can be frozen.
    Freeze,
    /// What a container changed outside its volumes can be reached.
    VisibleLayer,
    /// This process sees that a container is of its own host.
    OfThisHost,
}

use Ability::{Definitions, Freeze, Generations, InstantCopies, LocalVolumes, Mover, OfThisHost, VisibleLayer};

impl Ability {
    /// All there are.
    pub const ALL: [Self; 8] =
        [LocalVolumes, Mover, Definitions, InstantCopies, Generations, Freeze, VisibleLayer, OfThisHost];

    /// Whether an engine without it can have overlay volumes all the same: an engine's own volumes need none.
    const fn is_optional_on_overlay(self) -> bool {
        matches!(self, Mover | InstantCopies | VisibleLayer | OfThisHost)
    }
}

impl fmt::Display for Ability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LocalVolumes => "this process does not reach the volumes",
            Mover => "no mover is needed for the volumes",
            Definitions => "the engine's volumes are their own definitions",
            InstantCopies => "the storage copies no set at one instant",
            Generations => "no generation is beside the data",
            Freeze => "the runtime freezes nothing",
            VisibleLayer => "the runtime keeps changes outside volumes to itself",
            OfThisHost => {
                "the runtime keeps containers out of control groups, and nothing else tells that they are of this host"
            }
        })
    }
}

/// What became of a case that did not fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It was run.
    Passed,
    /// It was not run, because the engine lacks these.
    NotApplicable(Vec<Ability>),
}

/// What a case needs.
#[must_use]
pub fn needs(case: &str) -> &'static [Ability] {
    match case {
        "half_prepared_set_begins_from_nothing"
        | "set_access_names_every_volume"
        | "set_access_leaves_out_what_is_missing"
        | "empty_fill_holds_what_was_put_in"
        | "written_bytes_are_where_access_says" => &[LocalVolumes],
        "mover_left_behind_is_ended" => &[Mover],
        "lost_definition_is_made_again" => &[Definitions],
        "set_is_copied_at_one_instant" | "still_is_of_one_instant_until_nobody_reads_it" => &[InstantCopies, Freeze],
        "older_generation_does_not_start" => &[Generations],
        "container_freezes_and_goes_on" | "frozen_container_stops" => &[Freeze],
        "layer_is_reached_and_put_back" => &[VisibleLayer],
        "page_and_port_tell_whether_a_pod_works" => &[OfThisHost],
        _ => &[],
    }
}

/// The cases that an engine which lacks these is not asked, and what each would need.
#[must_use]
pub fn not_applicable(lacks: &[Ability]) -> Vec<(&'static str, Vec<Ability>)> {
    let left_out = |case: &'static str| {
        let missing: Vec<Ability> = needs(case).iter().copied().filter(|a| lacks.contains(a)).collect();
        (!missing.is_empty()).then_some((case, missing))
    };
    cases().into_iter().filter_map(|case| left_out(case.name)).collect()
}

/// Every ability is there or not as the fixture says, and what overlay volumes cannot do without is not excused.
pub(super) async fn abilities_are_as_declared(fixture: &Fixture) -> Checked {
    let (subject, id) = Subject::running(fixture).await?;
    let engine = subject.engine();
    let set = subject.set(1)?;
    let access = engine.set_access(&set).await?;
    let capabilities = engine.capabilities().await?;
    let runtime = capabilities.runtime(fixture.runtime.as_deref());
    let runtime = runtime.ok_or_else(|| Failure("the runtime of the fixture is not offered".to_owned()))?;
    let generation = subject.observe().await?.set(1).and_then(|s| s.generation);
    for ability in Ability::ALL {
        let has = match ability {
            LocalVolumes => matches!(access, SetAccess::Local(_)),
            Mover => matches!(access, SetAccess::Mover(_)),
            // A matter of the backend, not of the engine.
            Definitions => fixture.backend == Backend::Overlay,
            InstantCopies => engine.set_copying(&set).await? == Some(Copying::Instant),
            Generations => generation.is_some(),
            Freeze => runtime.freeze,
            VisibleLayer => runtime.root_changes,
            OfThisHost => fixture.hands.is_of_this_host(&id).await?,
        };
        let lacks = fixture.lacks(ability);
        check!(has != lacks, "{ability:?}: the fixture says that it is {}", if lacks { "missing" } else { "there" });
        let excused = lacks && fixture.backend == Backend::Overlay && !ability.is_optional_on_overlay();
        check!(!excused, "{ability:?}: overlay volumes cannot do without");
    }
    Ok(())
}
