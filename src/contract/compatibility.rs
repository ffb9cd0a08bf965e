//! Whether two programs fit together: the rule of contract section 11, that each side keeps working
//! with the minor release before and after its own.

use super::message::SchemaCompatibility;

/// How the two versions fit: the same major version and at most one minor apart.
pub fn schema_compatibility(local: &str, remote: Option<&str>) -> SchemaCompatibility {
    let (fits, notes) = match remote {
        None => (
            false,
            Some("the peer did not tell its platform_version".to_owned()),
        ),
        Some(remote) => match (major_minor(local), major_minor(remote)) {
            (Some((ours, our_minor)), Some((theirs, their_minor))) => {
                if ours != theirs {
                    (false, Some("the major versions differ".to_owned()))
                } else if our_minor.abs_diff(their_minor) > 1 {
                    (
                        false,
                        Some("the minor versions are more than one apart".to_owned()),
                    )
                } else {
                    (true, None)
                }
            }
            _ => (
                false,
                Some("the peer's platform_version is not a version".to_owned()),
            ),
        },
    };
    SchemaCompatibility {
        status: if fits { "compatible" } else { "incompatible" }.to_owned(),
        source: Some("implicit".to_owned()),
        local_version: Some(local.to_owned()),
        remote_version: remote.map(str::to_owned),
        notes,
    }
}

fn major_minor(version: &str) -> Option<(u64, u64)> {
    let version = version.trim();
    let version = version.strip_prefix(['v', 'V']).unwrap_or(version);
    let mut parts = version.split(['.', '-', '+']);
    let major = parts.next()?.parse().ok()?;
    let minor = parts.next().map_or(Some(0), |minor| minor.parse().ok())?;
    Some((major, minor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_one_minor_apart_fit() {
        let status = |local, remote| schema_compatibility(local, remote).status;
        assert_eq!(status("1.4.0", Some("1.3.9")), "compatible");
        assert_eq!(status("1.4.0", Some("v1.5.0-rc1")), "compatible");
        assert_eq!(status("1.4.0", Some("1.2.0")), "incompatible");
        assert_eq!(status("1.4.0", Some("2.4.0")), "incompatible");
        assert_eq!(status("1.4.0", Some("latest")), "incompatible");
        assert_eq!(status("1.4.0", None), "incompatible");
    }
}
