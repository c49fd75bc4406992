use serde_json::Value;

/// What QEMU reports of its own accord (docs/interop/qemu-qmp-ref).
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// QEMU is about to exit, or to stop.
    Shutdown(ShutdownCause),
    /// The power button was pressed, by `system_powerdown`.
    Powerdown,
    /// The machine was reset.
    Reset(ShutdownCause),
    /// The machine's processors were stopped.
    Stop,
    /// They run again.
    Resume,
    /// Any other.
    Other {
        /// Its name.
        name: String,
        /// What comes with it.
        data: Value,
    },
}

/// Why a machine shuts down or was reset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShutdownCause {
    /// The guest did it.
    pub guest: bool,
    /// QEMU's word for it (`ShutdownCause`): `guest-shutdown`, `host-qmp-quit`, `host-signal`, `guest-panic`, …
    pub reason: String,
}

/// One line from QEMU.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Message {
    Greeting,
    Return {
        id: Option<u64>,
        value: Value,
    },
    Error {
        id: Option<u64>,
        class: String,
        description: String,
    },
    Event(Event),
    /// Something a later QEMU may have come to say.
    Unknown,
}

impl Message {
    /// Understands a line, or returns `None` if it is not a JSON object.
    pub(crate) fn parse(line: &[u8]) -> Option<Message> {
        let Ok(Value::Object(mut object)) = serde_json::from_slice(line) else { return None };
        let id = object.get("id").and_then(Value::as_u64);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        if object.contains_key("QMP") {
            return Some(Message::Greeting);
        }
        if let Some(value) = object.remove("return") {
            return Some(Message::Return { id, value });
        }
        if let Some(error) = object.remove("error") {
            return Some(Message::Error { id, class: text(&error["class"]), description: text(&error["desc"]) });
        }
        if let Some(Value::String(name)) = object.remove("event") {
            return Some(Message::Event(event(name, object.remove("data").unwrap_or_default())));
        }
        Some(Message::Unknown)
    }
}

fn event(name: String, data: Value) -> Event {
    let cause = || ShutdownCause {
        guest: data["guest"].as_bool().unwrap_or(false),
        reason: data["reason"].as_str().unwrap_or("unknown").to_owned(),
    };
    match name.as_str() {
        "SHUTDOWN" => Event::Shutdown(cause()),
        "RESET" => Event::Reset(cause()),
        "POWERDOWN" => Event::Powerdown,
        "STOP" => Event::Stop,
        "RESUME" => Event::Resume,
        _ => Event::Other { name, data },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[track_caller]
    fn check(line: &str, expected: Option<Message>) {
        assert_eq!(Message::parse(line.as_bytes()), expected);
    }

    #[test]
    fn every_kind_of_message_is_understood() {
        check(r#"{"QMP": {"version": {}, "capabilities": ["oob"]}}"#, Some(Message::Greeting));
        check(r#"{"return": {"a": 1}, "id": 7}"#, Some(Message::Return { id: Some(7), value: json!({"a": 1}) }));
        check(r#"{"return": []}"#, Some(Message::Return { id: None, value: json!([]) }));
        let error = Message::Error { id: Some(1), class: "GenericError".to_owned(), description: "no".to_owned() };
        check(r#"{"id": 1, "error": {"class": "GenericError", "desc": "no"}}"#, Some(error));
    }

    #[test]
    fn events_are_told_apart_and_unknown_ones_kept() {
        let cause = ShutdownCause { guest: true, reason: "guest-shutdown".to_owned() };
        let line = r#"{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}, "timestamp": {}}"#;
        check(line, Some(Message::Event(Event::Shutdown(cause))));
        let cause = ShutdownCause { guest: false, reason: "unknown".to_owned() };
        check(r#"{"event": "RESET"}"#, Some(Message::Event(Event::Reset(cause))));
        check(r#"{"event": "STOP"}"#, Some(Message::Event(Event::Stop)));
        let other = Event::Other { name: "NEW".to_owned(), data: json!({"x": []}) };
        check(r#"{"event": "NEW", "data": {"x": []}}"#, Some(Message::Event(other)));
    }

    #[test]
    fn the_unexpected_is_told_from_the_broken() {
        check(r#"{"news": 1}"#, Some(Message::Unknown));
        check(r#"{"event": 3}"#, Some(Message::Unknown));
        check("{}", Some(Message::Unknown));
        check("[]", None);
        check("{", None);
        check("", None);
    }
}
