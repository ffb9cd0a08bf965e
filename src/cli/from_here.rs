//! Paths of a command line are meant from where the command is run; the configuration takes absolute ones alone. Knows
//! no option.

/// The same place as an absolute path. What is no path is left for the configuration to refuse.
pub fn from_here(path: &str) -> String {
    match std::path::absolute(path).map(|path| path.into_os_string().into_string()) {
        Ok(Ok(absolute)) => absolute,
        Ok(Err(_)) | Err(_) => path.to_owned(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_relative_path_starts_where_the_command_is_run() {
        let here = std::env::current_dir().unwrap();
        assert_eq!(from_here("ca.pem"), here.join("ca.pem").to_str().unwrap());
        assert_eq!(from_here("./state/x"), here.join("state/x").to_str().unwrap());
        assert_eq!(from_here("/etc/ca.pem"), "/etc/ca.pem");
        assert_eq!(from_here(""), "");
    }
}
