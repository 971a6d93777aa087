//! Arguments in, exit code out. Everything between is the library's.

use std::process::ExitCode;

fn main() -> ExitCode {
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        // Some library was first: it chose ring too, since no other provider is linked.
    }
    openclaw::cli::main(std::env::args_os()).into()
}
