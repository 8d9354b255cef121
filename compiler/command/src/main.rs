//! The `tpc` command; [`tpc_command`] implements it.

use mimalloc::MiMalloc;
use std::process::ExitCode;

/// Compiling allocates many small values, for which glibc's allocator takes more than half of the time.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    tpc_command::quiet_panics();
    let code = tpc_command::run(std::env::args_os(), &mut std::io::stdout().lock(), &mut std::io::stderr());
    ExitCode::from(code)
}
