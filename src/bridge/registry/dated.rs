//! Backups that follow each other in one directory: how they are called, and which of them are one too many.
//! Knows names alone, and of those its own alone: whatever else lies there is somebody's.

use std::num::NonZeroUsize;

use crate::base::time::UnixTime;

/// The end of a backup's name.
const SUFFIX: &str = ".redb";

/// Length of a time in a name, such as `2026-05-17T031500Z`.
const TIME_LEN: usize = 18;

/// What a backup is called that is made now, after what it is of. Names sort as their times do.
pub(super) fn name(of: &str, now: UnixTime) -> String {
    let time = now.to_string().replace(':', "");
    format!("{of}-{time}{SUFFIX}")
}

/// Which files go once `made` is there, of which so many are kept, itself among them: the oldest backups, and
/// earlier ones that were not finished, which have `draft` behind their names.
pub(super) fn spent<'f>(
    files: &'f [String],
    of: &str,
    (made, draft): (&str, &str),
    keep: NonZeroUsize,
) -> Vec<&'f str> {
    let mut backups: Vec<&str> = Vec::new();
    let mut spent: Vec<&str> = Vec::new();
    // What was just made stays, even where a clock that was ahead has made later names before.
    for file in files.iter().map(String::as_str).filter(|file| *file != made) {
        if is_backup(file, of) {
            backups.push(file);
        } else if file.strip_suffix(draft).is_some_and(|file| is_backup(file, of)) {
            spent.push(file);
        }
    }
    backups.sort_unstable();
    let surplus = (backups.len() + 1).saturating_sub(keep.get());
    spent.extend(backups.into_iter().take(surplus));
    spent
}

fn is_backup(file: &str, of: &str) -> bool {
    let time = file
        .strip_prefix(of)
        .and_then(|rest| rest.strip_prefix('-')?.strip_suffix(SUFFIX));
    time.is_some_and(|time| {
        time.len() == TIME_LEN
            && time.bytes().zip(0_u8..).all(|(byte, place)| match place {
                4 | 7 => byte == b'-',
                10 => byte == b'T',
                17 => byte == b'Z',
                _ => byte.is_ascii_digit(),
            })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400;

    fn of_day(day: i64) -> String {
        name("registry", UnixTime::from_seconds(day * DAY))
    }

    fn spent_of(files: &[String], made: &str, keep: usize) -> Vec<String> {
        let keep = NonZeroUsize::new(keep).unwrap_or(NonZeroUsize::MIN);
        let spent = spent(files, "registry", (made, ".new"), keep);
        spent.into_iter().map(ToOwned::to_owned).collect()
    }

    #[test]
    fn the_oldest_go_and_the_newest_stay() {
        assert_eq!(of_day(20_000), "registry-2024-10-04T000000Z.redb");
        let files: Vec<String> = [5, 3, 1, 4, 2].map(of_day).to_vec();
        assert_eq!(spent_of(&files, &of_day(5), 3), [of_day(1), of_day(2)]);
        assert_eq!(spent_of(&files, &of_day(5), 5), [""; 0]);
        assert_eq!(spent_of(&files, &of_day(5), 1).len(), 4);
    }

    #[test]
    fn what_was_just_made_stays_whatever_the_clock_says() {
        let files: Vec<String> = [1, 8, 9].map(of_day).to_vec();
        assert_eq!(spent_of(&files, &of_day(1), 2), [of_day(8)]);
        assert_eq!(spent_of(&files, &of_day(1), 1), [of_day(8), of_day(9)]);
    }

    #[test]
    fn drafts_that_were_left_go_and_what_is_not_ours_stays() {
        let left = of_day(1) + ".new";
        let files = [
            left.clone(),
            "registry.redb".to_owned(),
            "registry-2024-10-04-0000.redb".to_owned(),
            "registry-2024-10-04T00000xZ.redb".to_owned(),
            "sidecar-2024-10-04T000000Z.redb".to_owned(),
            of_day(2) + ".gpg",
            "registry-.redb".to_owned(),
            of_day(3),
        ];
        assert_eq!(spent_of(&files, &of_day(3), 1), [left]);
    }
}
