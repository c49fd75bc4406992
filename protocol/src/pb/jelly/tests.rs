use proptest::prelude::*;

use super::super::banana::tests::{any_expression, encode};
use super::super::banana::{Decoder, Encoder, SIZE_LIMIT, TooLong};
use super::reader::malformed;
use super::*;

fn bytes(text: &str) -> Expression {
    Expression::Bytes(text.as_bytes().to_vec())
}

fn list(tag: &str, parts: impl IntoIterator<Item = Expression>) -> Expression {
    Expression::List([bytes(tag)].into_iter().chain(parts).collect())
}

fn int(number: i64) -> Expression {
    Expression::Int(number)
}

fn read(expression: Expression) -> Result<Jelly, JellyError> {
    Jelly::read(expression, &mut Vec::new())
}

fn check(expression: Expression, expected: Jelly) {
    assert_eq!(read(expression.clone()), Ok(expected.clone()));
    let mut encoder = Encoder::default();
    expected.write(&mut encoder).unwrap();
    assert_eq!(encoder.take(), encode(&expression));
}

fn refused(expression: Expression, expected: JellyError) {
    assert_eq!(read(expression), Err(expected));
}

#[test]
fn values_have_twisteds_form() {
    check(int(5), Jelly::Int(5));
    check(bytes("list"), Jelly::Bytes(b"list".to_vec()));
    check(list("None", []), Jelly::None);
    check(list("boolean", [bytes("false")]), Jelly::Bool(false));
    check(list("unicode", [bytes("ü")]), Jelly::Str("ü".to_owned()));
    check(list("tuple", [int(1)]), Jelly::Sequence(Sequence::Tuple, vec![Jelly::Int(1)]));
    check(list("list", []), Jelly::Sequence(Sequence::List, Vec::new()));
    check(list("set", [int(1)]), Jelly::Sequence(Sequence::Set, vec![Jelly::Int(1)]));
    check(list("frozenset", [int(1)]), Jelly::Sequence(Sequence::FrozenSet, vec![Jelly::Int(1)]));
    check(
        list("dictionary", [Expression::List(vec![int(1), int(2)])]),
        Jelly::Dictionary(vec![(Jelly::Int(1), Jelly::Int(2))]),
    );
    check(list("decimal", [int(-15), int(-1)]), Jelly::Decimal(-15, -1));
    check(list("date", [bytes("2026 11 22")]), Jelly::Moment(Moment::Date, "2026 11 22".to_owned()));
    check(list("remote", [int(7)]), Jelly::Remote(7));
    check(list("local", [int(1)]), Jelly::Local(1));
    check(list("a.B", [int(1)]), Jelly::Copied { class: "a.B".to_owned(), state: Box::new(Jelly::Int(1)) });
}

#[test]
fn what_is_malformed_or_has_no_business_here_is_refused() {
    refused(Expression::List(Vec::new()), JellyError::Untagged);
    refused(Expression::List(vec![int(1)]), JellyError::Untagged);
    refused(list("module", [bytes("os")]), JellyError::Insecure("module".to_owned()));
    refused(list("unicode", []), malformed("unicode"));
    refused(list("unicode", [Expression::Bytes(vec![0xff])]), malformed("unicode"));
    refused(list("boolean", [bytes("yes")]), malformed("boolean"));
    refused(list("None", [int(1)]), malformed("None"));
    refused(list("remote", [int(-1)]), malformed("remote"));
    refused(list("dictionary", [int(1)]), malformed("dictionary"));
    refused(list("dictionary", [Expression::List(vec![int(1)])]), malformed("dictionary"));
    refused(list("a.B", []), malformed("a.B"));
}

#[test]
fn a_value_that_is_met_again_is_the_same() {
    let shared = list("reference", [int(1), list("tuple", [int(5)])]);
    let again = list("tuple", [list("dereference", [int(1)])]);
    let five = || Jelly::Sequence(Sequence::Tuple, vec![Jelly::Int(5)]);
    assert_eq!(
        read(list("list", [shared.clone(), again])),
        Ok(Jelly::Sequence(Sequence::List, vec![five(), Jelly::Sequence(Sequence::Tuple, vec![five()])])),
    );
    refused(list("list", [shared.clone(), shared]), malformed("reference"));
}

#[test]
fn a_value_that_contains_itself_is_refused() {
    refused(list("reference", [int(1), list("list", [list("dereference", [int(1)])])]), JellyError::Cyclic);
    refused(list("dereference", [int(1)]), JellyError::Cyclic);
}

#[test]
fn references_do_not_multiply_memory_without_bound() {
    // Each value holds the one before it ten times.
    let mut items = vec![list("reference", [int(0), list("list", [bytes("x")])])];
    for level in 1..20 {
        let ten = (0..10).map(|_| list("dereference", [int(level - 1)]));
        items.push(list("reference", [int(level), list("list", ten)]));
    }
    refused(list("list", items), JellyError::TooLarge);
    // Each value holds the one before it once, and is deeper.
    let mut items = vec![list("reference", [int(0), list("list", [])])];
    for level in 1..300 {
        items.push(list("reference", [int(level), list("list", [list("dereference", [int(level - 1)])])]));
    }
    refused(list("list", items), JellyError::TooDeep);
}

#[test]
fn every_reference_received_is_noted_once() {
    let mut remotes = Vec::new();
    let shared = list("reference", [int(1), list("list", [list("remote", [int(3)])])]);
    let value = list("list", [list("remote", [int(3)]), shared, list("dereference", [int(1)]), list("class", [])]);
    assert_eq!(Jelly::read(value, &mut remotes), Err(JellyError::Insecure("class".to_owned())));
    assert_eq!(remotes, [3, 3]);
}

#[test]
fn a_value_becomes_plain_or_says_why_not() {
    let check = |jelly: Jelly, expected: Result<Value, JellyError>| assert_eq!(jelly.into_value(), expected);
    let pair = |key| Jelly::Dictionary(vec![(key, Jelly::Bytes(b"v".to_vec()))]);
    let map = || Value::Map(vec![("k".to_owned(), Value::Bytes(b"v".to_vec()))]);
    check(pair(Jelly::Str("k".to_owned())), Ok(map()));
    check(pair(Jelly::Bytes(b"k".to_vec())), Ok(map()));
    check(pair(Jelly::Int(1)), Err(JellyError::Key));
    check(Jelly::Sequence(Sequence::Tuple, vec![Jelly::None]), Ok(Value::List(vec![Value::Nil])));
    check(Jelly::Decimal(15, -1), Ok(Value::Float(1.5)));
    check(Jelly::Moment(Moment::Date, "1 2 3".to_owned()), Ok("1 2 3".into()));
    check(Jelly::Sequence(Sequence::List, vec![Jelly::Remote(1)]), Err(JellyError::NotPlain("remote")));
}

#[test]
fn what_is_too_long_is_not_written() {
    let length = SIZE_LIMIT + 1;
    assert_eq!(Encoder::default().value(&"x".repeat(length).into()), Err(TooLong { length }));
    assert_eq!(Encoder::default().value(&Value::List(vec![Value::Nil; SIZE_LIMIT])), Err(TooLong { length }));
}

const SEQUENCES: [Sequence; 4] = [Sequence::List, Sequence::Tuple, Sequence::Set, Sequence::FrozenSet];

fn any_jelly() -> impl Strategy<Value = Jelly> {
    let leaf = prop_oneof![
        Just(Jelly::None),
        any::<bool>().prop_map(Jelly::Bool),
        any::<i64>().prop_map(Jelly::Int),
        any::<f64>().prop_filter("equal to itself", |f| !f.is_nan()).prop_map(Jelly::Float),
        any::<Vec<u8>>().prop_map(Jelly::Bytes),
        ".*".prop_map(Jelly::Str),
        (any::<i64>(), any::<i64>()).prop_map(|(number, exponent)| Jelly::Decimal(number, exponent)),
        ".*".prop_map(|text| Jelly::Moment(Moment::TimeDelta, text)),
        (0..i64::MAX as u64).prop_map(Jelly::Remote),
        (0..i64::MAX as u64).prop_map(Jelly::Local),
    ];
    leaf.prop_recursive(6, 64, 8, |inner| {
        prop_oneof![
            (prop::sample::select(&SEQUENCES[..]), prop::collection::vec(inner.clone(), 0..8))
                .prop_map(|(sequence, items)| Jelly::Sequence(sequence, items)),
            prop::collection::vec((inner.clone(), inner.clone()), 0..8).prop_map(Jelly::Dictionary),
            ("[a-z]+\\.[A-Z]+", inner).prop_map(|(class, state)| Jelly::Copied { class, state: Box::new(state) }),
        ]
    })
}

proptest! {
    #[test]
    fn a_value_survives_the_wire(jelly in any_jelly()) {
        let mut encoder = Encoder::default();
        jelly.write(&mut encoder).unwrap();
        let mut decoder = Decoder::default();
        decoder.push(&encoder.take());
        let expression = decoder.next_expression().unwrap().unwrap();
        prop_assert_eq!(read(expression), Ok(jelly));
    }

    #[test]
    fn any_expression_is_read_or_refused(expression in any_expression()) {
        let _ = read(expression);
    }
}
