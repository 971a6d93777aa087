//! Arguments in, exit code out. Everything between is the library's.

use std::process::ExitCode;

/// Commands and replies are many small values that one thread makes and another drops, which glibc's allocator is slow at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        // Some library was first: it chose ring too, since no other provider is linked.
    }
    openclaw::cli::main(std::env::args_os()).into()
}
