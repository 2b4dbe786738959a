use super::*;
use std::time::Duration;

const MS: u64 = 1_000_000;
const A: u64 = 1 << 16 | 1;
const B: u64 = 2 << 16 | 1;
const LOST: u64 = 3;
const LEASE: Law = Law::Lease(1000 * MS);

/// A visit from one millisecond to another; `met` and `seen` as they should be.
struct Made {
    who: u64,
    token: u64,
    from: u64,
    to: u64,
    met: u64,
    seen: u64,
    stood: u64,
    abandoned: bool,
    code: u64,
}

fn visit(who: u64, token: u64, from: u64, to: u64, seen: u64) -> Made {
    Made { who, token, from, to, met: 0, seen, stood: who, abandoned: false, code: 0 }
}

fn play(judge: &mut Judge, made: &Made, killed: bool) {
    let mut tell = |at: u64, told| judge.event(Event { at: at * MS, who: made.who, told });
    tell(made.from, Told::Asked);
    let (token, abandoned, met, seen) = (made.token, made.abandoned, made.met, made.seen);
    tell(made.from, Told::Entered { token, abandoned, met, seen });
    tell(made.from, Told::Checked { code: 0 });
    if killed {
        judge.killed(made.who >> 16, made.to * MS, made.to * MS);
    } else {
        tell(made.to, Told::Left { code: made.code, stood: made.stood });
        tell(made.to, Told::Released { code: made.code });
    }
}

fn judge_of(law: Law) -> Judge {
    let mut judge = Judge::new(law, Duration::from_secs(5));
    judge.born(1, Language::Rust);
    judge.born(2, Language::C);
    judge
}

fn verdict(law: Law, visits: &[Made]) -> Verdict {
    let mut judge = judge_of(law);
    visits.iter().for_each(|made| play(&mut judge, made, false));
    judge.finish()
}

fn is_red(verdict: &Verdict, what: &str) -> bool {
    verdict.violations.len() == 1 && verdict.violations[0].starts_with(what)
}

#[test]
fn each_rule_is_seen_alone() {
    let good = || [visit(A, 1, 1, 2, 0), visit(B, 2, 3, 4, 1), visit(A, 3, 5, 6, 2)];
    for law in [Law::Lock, LEASE] {
        let green = verdict(law, &good());
        assert_eq!((green.violations.len(), green.all_holds()), (0, 3), "{green:?}");
        let changed = |change: fn(&mut Made)| {
            let mut visits = good();
            change(&mut visits[1]);
            verdict(law, &visits)
        };
        assert!(is_red(&changed(|made| made.met = A), "rust 1.1 was met"));
        assert!(is_red(&changed(|made| made.stood = 0), "? 0.0 stood"));
        assert!(is_red(&changed(|made| made.token = 1), "a token"));
        assert!(changed(|made| made.code = 5).violations[0].starts_with("a hold was answered CLOSED"));
        assert!(changed(|made| made.seen = 0).violations[0].starts_with("the counter was 0"));
    }
    let mut wrongly_told = good();
    wrongly_told[1].abandoned = true;
    assert!(is_red(&verdict(Law::Lock, &wrongly_told), "it was told `abandoned`"));
    let mut lost = good();
    lost[1].code = LOST;
    assert!(verdict(Law::Lock, &lost).violations[0].starts_with("a hold was answered LOST"));
    assert_eq!(verdict(LEASE, &lost).violations.len(), 0);
    let crossed = [visit(A, 1, 1, 4, 0), visit(B, 2, 3, 5, 1)];
    assert!(is_red(&verdict(Law::Lock, &crossed), "two inside at once"));
}

#[test]
fn a_lease_may_end_under_a_holder_that_is_told() {
    let mut crossed = [visit(A, 1, 1, 4, 0), visit(B, 2, 3, 5, 1)];
    assert!(verdict(LEASE, &crossed).violations[0].starts_with("two believed"));
    crossed[0].code = LOST;
    let verdict = verdict(LEASE, &crossed);
    assert_eq!(verdict.violations, Vec::<String>::new());
    assert_eq!(verdict.overlaps.into_iter().collect::<Vec<_>>(), [(Cause::Starved, 1)]);
}

#[test]
fn a_lost_hold_that_is_released_with_ok_is_seen() {
    let mut judge = judge_of(LEASE);
    play(&mut judge, &visit(B, 2, 3, 5, 1), false);
    let mut tell = |at: u64, told| judge.event(Event { at: at * MS, who: A, told });
    tell(1, Told::Entered { token: 1, abandoned: false, met: 0, seen: 0 });
    tell(4, Told::Left { code: LOST, stood: B });
    tell(5, Told::Released { code: 0 });
    assert!(is_red(&judge.finish(), "a hold that was lost was released with OK"));
}

#[test]
fn a_refused_write_of_a_hold_that_stands_is_seen() {
    let refused_of = |stopped: bool, entered: u64, forgot: Option<(u64, u64)>, left: u64| {
        let mut judge = judge_of(LEASE);
        if stopped {
            judge.stopped(1, 2 * MS, 199 * MS);
        }
        if let Some((from, until)) = forgot {
            judge.disturbed(Cause::ServerForgot, from * MS, until * MS);
        }
        judge.wrote(Written { at: (entered + 4) * MS, who: A, token: 1, taken: false });
        judge.event(Event { at: MS, who: A, told: Told::Asked });
        judge.event(Event {
            at: entered * MS,
            who: A,
            told: Told::Entered { token: 1, abandoned: false, met: 0, seen: 0 },
        });
        judge.event(Event { at: left * MS, who: A, told: Told::Left { code: 0, stood: A } });
        judge.event(Event { at: left * MS, who: A, told: Told::Released { code: 0 } });
        judge.finish()
    };
    let refused = |forgot: Option<(u64, u64)>, left: u64| refused_of(false, 1, forgot, left);
    let what = "a write of a hold that stood was refused";
    assert!(is_red(&refused(None, 6), what));
    // Until the next renewal it cannot know that the server forgot it.
    assert_eq!(refused(Some((2, 3)), 6).violations, Vec::<String>::new());
    assert!(is_red(&refused(Some((2, 3)), 1004), what));
    assert!(is_red(&refused(Some((6, 7)), 8), what), "it was refused before");
    assert!(is_red(&refused_of(false, 200, Some((2, 3)), 210), what), "the new server granted it");
    // The old one had, and it was stopped before it could come in.
    assert_eq!(refused_of(true, 200, Some((2, 3)), 210).violations, Vec::<String>::new());
}

#[test]
fn a_death_inside_ends_the_visit_and_must_be_told() {
    for told in [false, true] {
        let mut judge = judge_of(Law::Lock);
        play(&mut judge, &visit(A, 1, 1, 3, 0), true);
        let next = Made { met: A, abandoned: told, ..visit(B, 2, 3, 4, 0) };
        play(&mut judge, &next, false);
        let verdict = judge.finish();
        assert!(if told { verdict.violations.is_empty() } else { is_red(&verdict, "it was not told") }, "{verdict:?}");
    }
}

#[test]
fn who_was_killed_before_it_could_tell_may_have_been_inside() {
    let met_after = |from: u64, until: u64| {
        let mut judge = judge_of(LEASE);
        play(&mut judge, &visit(A, 1, 10, 20, 0), false);
        judge.killed(2, from * MS, until * MS);
        play(&mut judge, &Made { met: B, abandoned: true, ..visit(A, 3, 30, 40, 1) }, false);
        judge.finish()
    };
    assert!(met_after(25, 26).violations.is_empty());
    // The signal was about to be sent when the first one entered.
    assert!(met_after(5, 25).violations.is_empty());
    assert!(is_red(&met_after(5, 6), "c 2.1 was met"));
    assert!(is_red(&met_after(35, 36), "c 2.1 was met"));
}

#[test]
fn a_free_lock_that_is_waited_for_is_seen() {
    let mut judge = judge_of(Law::Lock);
    play(&mut judge, &visit(A, 1, 1, 2, 0), false);
    judge.event(Event { at: MS, who: B, told: Told::Asked });
    judge.event(Event { at: 6000 * MS, who: B, told: Told::Entered { token: 2, abandoned: false, met: 0, seen: 1 } });
    judge.event(Event { at: 6001 * MS, who: B, told: Told::Left { code: 0, stood: B } });
    judge.event(Event { at: 6001 * MS, who: B, told: Told::Released { code: 0 } });
    let verdict = judge.finish();
    assert!(is_red(&verdict, "a free lock was waited for 5.998 s"), "{verdict:?}");
    assert_eq!(verdict.longest_idle, 5998 * MS);
}

#[test]
fn a_stopped_waiter_does_not_wait() {
    let mut judge = judge_of(Law::Lock);
    judge.stopped(2, 2 * MS, 5990 * MS);
    play(&mut judge, &visit(A, 1, 1, 2, 0), false);
    judge.event(Event { at: MS, who: B, told: Told::Asked });
    judge.event(Event { at: 6000 * MS, who: B, told: Told::GaveUp { code: 1 } });
    play(&mut judge, &visit(A, 2, 6001, 6002, 1), false);
    assert_eq!(judge.finish().longest_idle, 10 * MS);
}

#[test]
fn who_never_leaves_or_never_gets_an_answer_is_seen() {
    let mut judge = judge_of(Law::Lock);
    judge.event(Event { at: MS, who: B, told: Told::Asked });
    judge.event(Event { at: MS, who: A, told: Told::Entered { token: 1, abandoned: false, met: 0, seen: 0 } });
    assert_eq!(judge.finish().violations.len(), 2);
}

#[test]
fn who_comes_in_or_believes_while_nobody_can_answer_is_seen() {
    let visited = |asked: u64, entered: u64, left: u64| {
        let mut judge = judge_of(LEASE);
        judge.absent(10 * MS, 5000 * MS);
        let mut tell = |at: u64, told| judge.event(Event { at: at * MS, who: A, told });
        tell(asked, Told::Asked);
        tell(entered, Told::Entered { token: 1, abandoned: false, met: 0, seen: 0 });
        tell(left, Told::Left { code: 0, stood: A });
        tell(left, Told::Released { code: 0 });
        judge.finish()
    };
    assert!(is_red(&visited(11, 12, 13), "somebody came in while nobody could answer"));
    assert!(is_red(&visited(8, 12, 1011), "a hold was believed in past its lease while nobody could answer"));
    // Let in before, or by an answer that came after.
    for (asked, entered, left) in [(8, 12, 1009), (11, 5001, 5002), (8, 12, 5001)] {
        assert_eq!(visited(asked, entered, left).violations, Vec::<String>::new());
    }
}

#[test]
fn what_is_done_to_a_minority_excuses_nobody() {
    let after = |cause| {
        let mut judge = judge_of(LEASE);
        judge.disturbed(cause, 2 * MS, 6999 * MS);
        play(&mut judge, &visit(A, 1, 1, 2, 0), false);
        judge.event(Event { at: 2 * MS, who: B, told: Told::Asked });
        judge.event(Event {
            at: 7000 * MS,
            who: B,
            told: Told::Entered { token: 2, abandoned: false, met: 0, seen: 1 },
        });
        judge.event(Event { at: 7001 * MS, who: B, told: Told::Left { code: LOST, stood: B } });
        judge.event(Event { at: 7001 * MS, who: B, told: Told::Released { code: LOST } });
        judge.finish()
    };
    let (excused, seen) = (after(Cause::NetworkCut), after(Cause::Minority));
    assert_eq!(excused.violations, Vec::<String>::new());
    assert!(excused.odd.is_empty() && excused.lost == [(Cause::NetworkCut, 1)].into());
    assert!(is_red(&seen, "a free lock was waited for"), "{seen:?}");
    assert!(seen.odd.len() == 1 && seen.lost == [(Cause::Minority, 1)].into());
}

#[test]
fn a_failover_explains_two_that_believe_and_no_token_that_falls() {
    let crossed = |cause: Cause, tokens: [u64; 2]| {
        let mut judge = judge_of(LEASE);
        judge.disturbed(cause, MS, 3 * MS);
        play(&mut judge, &visit(A, tokens[0], 1, 4, 0), false);
        play(&mut judge, &visit(B, tokens[1], 2, 5, 1), false);
        judge.finish()
    };
    let explained = crossed(Cause::FailedOver, [1, 2]);
    assert_eq!(explained.violations, Vec::<String>::new());
    assert_eq!(explained.overlaps, [(Cause::FailedOver, 1)].into());
    // The old server may still know it; one that came back empty does not.
    assert!(is_red(&crossed(Cause::ServerForgot, [1, 2]), "a hold that was lost was released with OK"));
    assert!(crossed(Cause::ServerRestarted, [1, 2]).violations[0].starts_with("two believed"));
    let falls = |cause: Cause, asked: u64| {
        let mut judge = judge_of(LEASE);
        judge.disturbed(cause, MS, 9 * MS);
        play(&mut judge, &visit(A, 2, 3, 4, 0), false);
        judge.event(Event { at: asked * MS, who: B, told: Told::Asked });
        judge.event(Event { at: 6 * MS, who: B, told: Told::Entered { token: 1, abandoned: false, met: 0, seen: 1 } });
        judge.event(Event { at: 7 * MS, who: B, told: Told::Left { code: 0, stood: B } });
        judge.event(Event { at: 7 * MS, who: B, told: Told::Released { code: 0 } });
        judge.finish()
    };
    assert!(is_red(&falls(Cause::FailedOver, 5), "a token that is not larger"));
    assert!(is_red(&falls(Cause::NetworkCut, 2), "a token that is not larger"));
    assert_eq!(falls(Cause::FailedOver, 2).violations, Vec::<String>::new());
}
