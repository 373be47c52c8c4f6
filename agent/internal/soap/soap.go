// Package soap reads and writes SOAP 1.1 envelopes, document/literal wrapped; what the operations do is none of its business.
//
// A message is a Go struct whose fields are named and ordered as the elements of the schema:
//
//	string bool int64 float64 time.Time Hex Received Payload   one required element
//	a pointer to one of them                                   an optional element
//	a slice of one of them                                     any number of elements
//	a struct (or pointer, or slice of them)                    an element with children
//
// Whatever does not fit the struct is refused, so that a mistyped or newer element is never silently ignored.
package soap

import (
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"io"
)

// Namespaces.
const (
	EnvelopeNamespace = "http://schemas.xmlsoap.org/soap/envelope/"
	DeployNamespace   = "urn:sojourn:deploy:1"
	xopNamespace      = "http://www.w3.org/2004/08/xop/include"
	schemaInstance    = "http://www.w3.org/2001/XMLSchema-instance"
)

// Limits on a request's envelope. Attachments are not part of it: they are streamed.
const (
	MaximumEnvelope = 8 << 20  // bytes; inline base64 must fit in here
	MaximumDepth    = 16       // a valid request has 5 levels
	MaximumElements = 20000    // a long list of arguments and variables has some hundreds
	MaximumTag      = 16 << 10 // bytes, with its attributes; a valid one has some hundreds
)

// Hex is an xs:hexBinary.
type Hex []byte

func (h Hex) String() string { return hex.EncodeToString(h) }

// Received is an xs:base64Binary of a request: either the bytes themselves, or the content id of the attachment that holds them.
type Received struct {
	Inline    []byte
	ContentID string
}

// Payload is an xs:base64Binary of an answer. Write is called once, after everything before it in the message has been
// written, so that a checksum can be made on the way; Size is a hint (0: empty).
type Payload struct {
	Write func(io.Writer) error
	Size  int64
}

// Bytes makes a payload of bytes.
func Bytes(b []byte) Payload {
	return Payload{func(w io.Writer) error { _, err := w.Write(b); return err }, int64(len(b))}
}

// Fault codes of SOAP 1.1, 4.4.1.
const (
	FaultClient         = "Client"
	FaultServer         = "Server"
	FaultVersion        = "VersionMismatch"
	FaultMustUnderstand = "MustUnderstand"
)

// FormatError says what is wrong with a request, before any operation has begun.
type FormatError struct {
	FaultCode string
	Detail    string
}

func (e *FormatError) Error() string { return e.Detail }

func malformed(format string, args ...any) error {
	return &FormatError{FaultClient, fmt.Sprintf(format, args...)}
}

func name(n xml.Name) string {
	if n.Space == "" {
		return n.Local
	}
	return "{" + n.Space + "}" + n.Local
}
