package soap_test

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"reflect"
	"testing"
	"testing/iotest"

	"sojourn.example/agent/internal/deploy"
	"sojourn.example/agent/internal/soap"
)

// requests makes the message of each operation.
var requests = map[string]func() any{
	"GetInfo":         func() any { return new(deploy.GetInfo) },
	"RenewLease":      func() any { return new(deploy.RenewLease) },
	"Execute":         func() any { return new(deploy.Execute) },
	"ListExecutions":  func() any { return new(deploy.ListExecutions) },
	"ReadOutput":      func() any { return new(deploy.ReadOutput) },
	"WriteInput":      func() any { return new(deploy.WriteInput) },
	"Signal":          func() any { return new(deploy.Signal) },
	"Release":         func() any { return new(deploy.Release) },
	"PutFile":         func() any { return new(deploy.PutFile) },
	"GetFile":         func() any { return new(deploy.GetFile) },
	"Stat":            func() any { return new(deploy.Stat) },
	"Remove":          func() any { return new(deploy.Remove) },
	"Extract":         func() any { return new(deploy.Extract) },
	"QueryPackages":   func() any { return new(deploy.QueryPackages) },
	"OpenPort":        func() any { return new(deploy.OpenPort) },
	"ClosePort":       func() any { return new(deploy.ClosePort) },
	"ListPorts":       func() any { return new(deploy.ListPorts) },
	"RemoveLeftovers": func() any { return new(deploy.RemoveLeftovers) },
	"Shutdown":        func() any { return new(deploy.Shutdown) },
}

func decode(from io.Reader) (operation string, message any, err error) {
	operation, err = soap.Decode(from, func(operation string) any {
		if request, ok := requests[operation]; ok {
			message = request()
		} else {
			message = nil
		}
		return message
	})
	return operation, message, err
}

// FuzzDecode: what is decoded was sent, within the limits, and is the same however the bytes come; what is not is a FormatError.
func FuzzDecode(f *testing.F) {
	f.Fuzz(func(t *testing.T, raw []byte) {
		operation, message, err := decode(bytes.NewReader(raw))
		again, same, errAgain := decode(iotest.OneByteReader(bytes.NewReader(raw)))
		if operation != again || (err == nil) != (errAgain == nil) || err == nil && !reflect.DeepEqual(message, same) {
			t.Fatalf("at once %s %+v %v, byte by byte %s %+v %v", operation, message, err, again, same, errAgain)
		}
		if err != nil {
			format, ok := errors.AsType[*soap.FormatError](err)
			if !ok || format.Detail == "" {
				t.Fatalf("%T %v", err, err)
			}
			switch format.FaultCode {
			case soap.FaultClient, soap.FaultVersion, soap.FaultMustUnderstand:
			default:
				t.Fatal(format.FaultCode)
			}
			return
		}
		if requests[operation] == nil {
			t.Fatalf("there is no %q", operation)
		}
		if size := sizeOf(reflect.ValueOf(message)); size > len(raw) {
			t.Fatalf("%d bytes came of %d", size, len(raw))
		}
		within(t, raw)
	})
}

// sizeOf is the number of bytes that are in strings and byte slices.
func sizeOf(v reflect.Value) (size int) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			size = sizeOf(v.Elem())
		}
	case reflect.String:
		size = v.Len()
	case reflect.Struct:
		for i := range v.NumField() {
			size += sizeOf(v.Field(i))
		}
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return v.Len()
		}
		for i := range v.Len() {
			size += sizeOf(v.Index(i))
		}
	}
	return size
}

// within looks at an envelope that was taken with nothing but Go's own reader.
func within(t *testing.T, raw []byte) {
	t.Helper()
	depth, elements, ended := 0, 0, false
	for decoder := xml.NewDecoder(bytes.NewReader(raw)); !ended; {
		token, err := decoder.Token()
		if err != nil {
			t.Fatalf("it was taken, but %v", err)
		}
		switch token.(type) {
		case xml.StartElement:
			elements++
			depth++
		case xml.EndElement:
			depth--
			ended = depth == 0
		case xml.Directive:
			t.Fatal("it was taken with a document type declaration")
		}
		if depth > soap.MaximumDepth || elements > soap.MaximumElements || decoder.InputOffset() > soap.MaximumEnvelope {
			t.Fatal("it was taken past the limits")
		}
	}
}
