//! The `tpc` command; [`tpc_command`] implements it.

use std::process::ExitCode;

fn main() -> ExitCode {
    tpc_command::quiet_panics();
    let code = tpc_command::run(std::env::args_os(), &mut std::io::stdout().lock(), &mut std::io::stderr());
    ExitCode::from(code)
}
