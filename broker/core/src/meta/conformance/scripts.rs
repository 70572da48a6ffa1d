//! The scripts. Each shows one thing that the controller or a broker rests on.

use super::Seen::Gone;
use super::{Do, Entry, If, Script, Seen, Step};

use Do::{Delete, Put, PutIn};
use If::{Absent, Created, Modified, Present};
use Step::{Compact, Done, End, Get, Idle, Illegal, Lapsed, Open, Range, Refused, Sees, Watch};

const fn entry(
    key: &'static str,
    value: &'static str,
    created: &'static str,
    modified: &'static str,
) -> Entry {
    Entry { key, value, created, modified }
}

const fn seen(key: &'static str, value: &'static str, created: &'static str, modified: &'static str) -> Seen {
    Seen::Put(entry(key, value, created, modified))
}

/// Every script.
pub const SCRIPTS: &[Script] = &[
    Script {
        name: "a-key-remembers-when-it-was-made-and-changed",
        steps: &[
            Get("a", None),
            Done(&[], &[Put("a", "1")], "r1"),
            Get("a", Some(entry("a", "1", "r1", "r1"))),
            Done(&[], &[Put("a", "2")], "r2"),
            Get("a", Some(entry("a", "2", "r1", "r2"))),
            // The same value again is a change too: a compare on the revision must notice it.
            Done(&[], &[Put("a", "2")], "r3"),
            Get("a", Some(entry("a", "2", "r1", "r3"))),
            Done(&[], &[Delete("a")], "r4"),
            Get("a", None),
            Done(&[], &[Put("a", "3")], "r5"),
            Get("a", Some(entry("a", "3", "r5", "r5"))),
        ],
    },
    Script {
        name: "only-one-of-two-creators-wins",
        steps: &[
            Done(&[Absent("a")], &[Put("a", "mine")], "r1"),
            Refused(&[Absent("a")], &[Put("a", "theirs")], &["a"], &[Some(entry("a", "mine", "r1", "r1"))]),
            Get("a", Some(entry("a", "mine", "r1", "r1"))),
        ],
    },
    Script {
        name: "a-compare-on-the-revision-admits-one-writer",
        steps: &[
            Done(&[], &[Put("a", "1")], "r1"),
            Done(&[Modified("a", "r1")], &[Put("a", "2")], "r2"),
            Refused(
                &[Modified("a", "r1")],
                &[Put("a", "late")],
                &["a"],
                &[Some(entry("a", "2", "r1", "r2"))],
            ),
            Done(&[Modified("a", "r2")], &[Delete("a")], "r3"),
            Refused(&[Modified("a", "r2")], &[Put("a", "late")], &["a"], &[None]),
            Get("a", None),
        ],
    },
    Script {
        name: "a-key-that-was-made-again-is-another",
        steps: &[
            Done(&[], &[Put("controller", "1")], "first"),
            Done(&[], &[Put("controller", "1")], "renewed"),
            Done(&[Created("controller", "first")], &[Put("a", "by 1")], "r1"),
            Done(&[], &[Delete("controller")], "gone"),
            Refused(&[Created("controller", "first")], &[Put("a", "late")], &[], &[]),
            Done(&[], &[Put("controller", "2")], "second"),
            Refused(
                &[Created("controller", "first")],
                &[Put("a", "late")],
                &["a"],
                &[Some(entry("a", "by 1", "r1", "r1"))],
            ),
            Done(&[Created("controller", "second")], &[Put("a", "by 2")], "r2"),
        ],
    },
    Script {
        name: "all-compares-must-hold-and-all-changes-are-made",
        steps: &[
            Done(&[Absent("a"), Absent("b")], &[Put("a", "1"), Put("b", "1")], "r1"),
            Refused(
                &[Present("a"), Absent("b")],
                &[Put("a", "2"), Put("c", "2")],
                &["a", "b", "c"],
                &[Some(entry("a", "1", "r1", "r1")), Some(entry("b", "1", "r1", "r1")), None],
            ),
            Get("c", None),
            Done(
                &[Present("a"), Modified("b", "r1"), Absent("c")],
                &[Delete("a"), Put("b", "2"), Put("c", "2")],
                "r2",
            ),
            Range("", &[entry("b", "2", "r1", "r2"), entry("c", "2", "r2", "r2")]),
        ],
    },
    Script {
        name: "a-refused-transaction-changes-nothing",
        steps: &[
            Done(&[], &[Put("a", "1")], "r1"),
            Watch("w", "", "r1"),
            Refused(&[Absent("a")], &[Put("a", "2"), Put("b", "2")], &[], &[]),
            Done(&[], &[Put("z", "end")], "r2"),
            Sees("w", &[seen("z", "end", "r2", "r2")]),
        ],
    },
    Script {
        name: "removing-what-is-not-there-is-no-change",
        steps: &[
            Done(&[], &[Put("a", "1")], "r1"),
            Idle(&[], &[Delete("b")], "r1"),
            Idle(&[Present("a")], &[], "r1"),
            Get("a", Some(entry("a", "1", "r1", "r1"))),
        ],
    },
    Script {
        name: "a-key-is-changed-at-most-once-per-transaction",
        steps: &[
            Illegal(&[Put("a", "1"), Put("a", "2")]),
            Illegal(&[Put("a", "1"), Delete("a")]),
            Get("a", None),
        ],
    },
    Script {
        name: "a-range-is-its-prefix-in-order-and-nothing-else",
        steps: &[
            Done(&[], &[Put("topics/b", "2"), Put("topics/a", "1"), Put("topics/a/x", "3")], "r1"),
            Done(&[], &[Put("topicsX", "no"), Put("topic", "no"), Put("users/a", "no")], "r2"),
            Range(
                "topics/",
                &[
                    entry("topics/a", "1", "r1", "r1"),
                    entry("topics/a/x", "3", "r1", "r1"),
                    entry("topics/b", "2", "r1", "r1"),
                ],
            ),
            Range("topics/c", &[]),
            Range("users/", &[entry("users/a", "no", "r2", "r2")]),
        ],
    },
    Script {
        name: "a-watch-sees-every-change-under-its-prefix-in-order",
        steps: &[
            Done(&[], &[Put("x/a", "before")], "r1"),
            Watch("w", "x/", "r1"),
            Done(&[], &[Put("x/b", "2"), Put("x/a", "2")], "r2"),
            Done(&[], &[Put("y/a", "elsewhere")], "r3"),
            Done(&[], &[Delete("x/a")], "r4"),
            Done(&[], &[Put("x/a", "again")], "r5"),
            Sees(
                "w",
                &[
                    seen("x/a", "2", "r1", "r2"),
                    seen("x/b", "2", "r2", "r2"),
                    Gone("x/a", "r4"),
                    seen("x/a", "again", "r5", "r5"),
                ],
            ),
            Done(&[], &[Put("x/c", "3")], "r6"),
            Sees("w", &[seen("x/c", "3", "r6", "r6")]),
        ],
    },
    Script {
        name: "a-watch-may-start-in-the-past",
        steps: &[
            Done(&[], &[Put("a", "1")], "r1"),
            Done(&[], &[Put("a", "2")], "r2"),
            Done(&[], &[Delete("a")], "r3"),
            Watch("w", "", "r1"),
            Sees("w", &[seen("a", "2", "r1", "r2"), Gone("a", "r3")]),
            Watch("late", "", "r2"),
            Sees("late", &[Gone("a", "r3")]),
        ],
    },
    Script {
        name: "a-watch-too-far-in-the-past-is-told-so",
        steps: &[
            Done(&[], &[Put("a", "1")], "r1"),
            Done(&[], &[Put("a", "2")], "r2"),
            Done(&[], &[Put("a", "3")], "r3"),
            Compact("r3"),
            Watch("late", "", "r1"),
            Lapsed("late"),
            Get("a", Some(entry("a", "3", "r1", "r3"))),
            Watch("w", "", "r3"),
            Done(&[], &[Put("a", "4")], "r4"),
            Sees("w", &[seen("a", "4", "r1", "r4")]),
        ],
    },
    Script {
        name: "a-session-takes-its-keys-with-it",
        steps: &[
            Open("s"),
            Open("other"),
            Done(
                &[],
                &[PutIn("b", "s", "s"), PutIn("a", "s", "s"), PutIn("c", "other", "other"), Put("d", "free")],
                "r1",
            ),
            Watch("w", "", "r1"),
            End("s"),
            Sees("w", &[Gone("a", "r2"), Gone("b", "r2")]),
            Range("", &[entry("c", "other", "r1", "r1"), entry("d", "free", "r1", "r1")]),
            Illegal(&[PutIn("a", "late", "s")]),
            Done(&[Absent("a")], &[PutIn("a", "new", "other")], "r3"),
            Get("a", Some(entry("a", "new", "r3", "r3"))),
        ],
    },
    Script {
        name: "a-key-belongs-to-the-session-that-put-it-last",
        steps: &[
            Open("s"),
            Open("other"),
            Done(&[], &[PutIn("a", "1", "s"), PutIn("b", "1", "s")], "r1"),
            Done(&[], &[PutIn("a", "2", "other")], "r2"),
            Done(&[], &[Put("b", "2")], "r3"),
            End("s"),
            Range("", &[entry("a", "2", "r1", "r2"), entry("b", "2", "r1", "r3")]),
        ],
    },
];
