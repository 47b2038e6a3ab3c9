//! The fuzz targets as libFuzzer runs them: `PERENNIAL_FUZZ_TARGET` names the one, and where `PERENNIAL_FUZZ_SEEDS` names a
//! directory, seeds are written there. See `./dev fuzz`.

#![no_main]

use std::sync::LazyLock;

static TARGET: LazyLock<fn(&[u8]) -> bool> = LazyLock::new(|| {
    let name = std::env::var("PERENNIAL_FUZZ_TARGET").unwrap_or_default();
    perennial_fuzz::target(&name).unwrap_or_else(|| panic!("PERENNIAL_FUZZ_TARGET names no target: {name:?}"))
});

libfuzzer_sys::fuzz_target!(
    init: {
        if let Some(into) = std::env::var_os("PERENNIAL_FUZZ_SEEDS") {
            perennial_fuzz::write_seeds(into.as_ref()).expect("seeds are written");
        }
    },
    |input: &[u8]| {
        // Whether it was taken matters to seeds only.
        let _ = TARGET(input);
    }
);
