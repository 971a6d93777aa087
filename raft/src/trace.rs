//! Traces across instances: what is being done here, as the text that others continue it by.
//!
//! Owns the form of a W3C `traceparent`. Whether anything is recorded, and where it goes, is for whoever installs a tracer;
//! without one nothing here costs more than a look at a thread's own variable. `tracestate` is not carried.
//!
//! Source: W3C Trace Context, level 1, section 3.2.

use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// Bytes of a `traceparent` of version 00, which is the longest that is read.
pub const PARENT_BYTES: usize = 55;

/// The `traceparent` of the span that is entered; empty where nobody traces.
pub fn parent() -> String {
    Context::map_current(|context| {
        let span = context.span();
        let context = span.span_context();
        if !context.is_valid() {
            return String::new();
        }
        format!("00-{}-{}-{:02x}", context.trace_id(), context.span_id(), context.trace_flags().to_u8())
    })
}

/// Whether the span that is entered is part of a trace.
pub fn is_on() -> bool {
    Context::map_current(|context| context.span().span_context().is_valid())
}

/// Whether `text` is a `traceparent` that can be continued.
pub fn is_parent(text: &str) -> bool {
    parse(text).is_some()
}

/// Makes `span`, which was not entered yet, continue what `parent` names. A text that is no `traceparent` changes nothing.
pub fn follow(span: &Span, parent: &str) {
    if parent.is_empty() {
        return;
    }
    if let Some(context) = parse(parent) {
        // Refused where nobody traces, and then there is nothing to continue.
        span.set_parent(Context::new().with_remote_span_context(context)).ok();
    }
}

/// What a `traceparent` of version 00 names, if it is one.
fn parse(text: &str) -> Option<SpanContext> {
    let mut parts = text.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let lower = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'-'));
    let lengths = [version.len(), trace.len(), span.len(), flags.len()];
    if version != "00" || lengths != [2, 32, 16, 2] || !lower || parts.next().is_some() {
        return None;
    }
    let context = SpanContext::new(
        TraceId::from_hex(trace).ok()?,
        SpanId::from_hex(span).ok()?,
        TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED,
        true,
        TraceState::NONE,
    );
    context.is_valid().then_some(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_read_as_it_is_defined_and_nothing_else_is() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(good.len(), PARENT_BYTES);
        let context = parse(good).unwrap();
        assert_eq!(context.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(context.span_id().to_string(), "b7ad6b7169203331");
        assert!(context.is_sampled() && context.is_remote());
        assert!(!parse("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00").unwrap().is_sampled());
        for bad in [
            "",
            "00",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b716920333-001",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn without_a_tracer_nothing_is_carried() {
        let span = tracing::info_span!("x");
        follow(&span, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
        assert_eq!(span.in_scope(parent), "");
    }
}
