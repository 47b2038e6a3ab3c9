//! The hook that ends what another began: run before anything else is done, found again after every crash.

use super::{Action, Input, Next, problem};
use crate::engine::ContainerState;
use crate::hook::TRIES_MAX;
use crate::record::{HookEnd, Record};

/// The step that an owed hook needs; `None` when none is owed, and while there is nothing that it could run in.
pub(super) fn owed(input: &Input<'_>) -> Option<Next> {
    let owed = input.pod.hook.as_ref()?;
    let settled = |end| Some(Next::Act(Action::Record(Record::HookSettled(end))));
    let failed = |why: &str| {
        HookEnd::Failed(problem(
            "hook-not-run",
            format!("the after hook of snapshot {} was not run: {why}", owed.snapshot),
            "",
        ))
    };
    match input.pod.current {
        Some(current) if current == owed.set => {}
        // Other data, which no hook has touched.
        Some(_) => return settled(HookEnd::NotNeeded),
        None => return settled(failed("the pod had ended, and its data is in a snapshot as the before hook left it")),
    }
    let container = input.observed.container.as_ref().filter(|c| c.set == owed.set)?;
    // One that does not run may have left files behind that say so: its next run gets the hook.
    if container.state != ContainerState::Running {
        return None;
    }
    if owed.tries >= TRIES_MAX {
        return settled(failed("the engine did not answer"));
    }
    Some(Next::Act(Action::RunHook { container: container.id.clone() }))
}
