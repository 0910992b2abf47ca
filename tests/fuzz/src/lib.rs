//! Fuzz targets: one module for each, with what it runs on an input, and its seeds.
//!
//! `tests/fuzz/run` builds and runs them, on a stable toolchain too. A panic, a failed assertion, an allocation of more
//! than the target's bound, and an input that takes too long end a run; libFuzzer keeps the input.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr;

mod answer;
mod bits;
mod input;
mod seeds;

pub mod chunk;
pub mod chunk_of_histograms;
pub mod flags;
pub mod histogram_chunk;
pub mod matchers;
pub mod numbers;
pub mod read;
pub mod snappy;
mod write;
pub mod write_1;
pub mod write_2;
pub mod xor;

pub use libfuzzer_sys;
pub use seeds::write_if_asked;

/// Defines the program of a target: its module, and the most MiB that one allocation may have.
#[macro_export]
macro_rules! target {
    ($module:ident, $mebibytes:literal) => {
        #[global_allocator]
        static ALLOCATOR: $crate::Bounded<{ $mebibytes << 20 }> = $crate::Bounded;

        $crate::libfuzzer_sys::fuzz_target!(
            init: $crate::write_if_asked($crate::$module::seeds),
            |data: &[u8]| $crate::$module::run(data)
        );
    };
}

/// Allocator that refuses an allocation of more than `MAX` bytes, which ends the program. `-rss_limit_mb` does not see
/// memory that is reserved and not used, and `-malloc_limit_mb` needs a sanitizer.
pub struct Bounded<const MAX: usize>;

// SAFETY: every call is passed on to `System`, or fails.
unsafe impl<const MAX: usize> GlobalAlloc for Bounded<MAX> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are those of `System`.
        if layout.size() > MAX { ptr::null_mut() } else { unsafe { System.alloc(layout) } }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        if layout.size() > MAX { ptr::null_mut() } else { unsafe { System.alloc_zeroed(layout) } }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        if size > MAX { ptr::null_mut() } else { unsafe { System.realloc(old, layout, size) } }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(old, layout) }
    }
}
