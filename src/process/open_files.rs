//! How many files this process may have open. Programs begin with a low limit for the sake of
//! `select(2)`, which nothing here uses, and with a higher one up to which they may raise it themselves.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::debug;

/// Raises the limit as far as this process may: each session takes a file or two, and there may be
/// thousands.
pub fn allow_many() {
    let allowed = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: allowed.maximum,
        maximum: allowed.maximum,
    };
    // It goes on with what there is: whoever finds no file free says so.
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        debug!(%error, "the limit of open files stays as it is");
    }
}
