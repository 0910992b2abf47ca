//! Memory that the allocator keeps for later.

/// Returns memory that is free, but lies between what is in use, to the operating system. Takes some milliseconds. By
/// itself the GNU C library returns only what lies at the end of its heaps: with a million series 25 MB more stay
/// resident once they are created or sealed. Does nothing with another C library.
#[expect(unsafe_code, reason = "no crate offers malloc_trim as a safe function")]
pub fn return_free_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: malloc_trim(3) may be called at any time and from any thread, and touches only memory that is free.
    unsafe {
        libc::malloc_trim(0);
    }
}
