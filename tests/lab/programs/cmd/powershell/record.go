//go:build windows

package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"unsafe"

	"golang.org/x/sys/windows"
)

// recordings is the folder whose presence has each execution write down what it was given, and answer with what a test has laid out
// there, whatever was asked: in it are `answers.json`, a list of answer; for execution N, counted from 1, `N.line`, its command line
// as Windows has it (UTF-16), and `N.input`, its standard input up to the end.
const recordings = `C:\windows\temp\sojourn-powershell`

type answer struct {
	Stdout []byte // base64 in the file
	Stderr []byte
	Code   uint32
	Find   string // a regular expression: what its group finds in the input takes the place of FOUND in Stdout
}

// record is the whole execution, and ends the process, where there is the folder.
func record() error {
	if _, err := os.Stat(recordings); err != nil {
		return nil
	}
	number, err := begin()
	if err != nil {
		return err
	}
	input, err := os.Create(filepath.Join(recordings, fmt.Sprintf("%d.input", number)))
	if err != nil {
		return err
	}
	if _, err := io.Copy(input, os.Stdin); err != nil {
		return err
	}
	if err := input.Close(); err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(recordings, "answers.json"))
	if err != nil {
		return err
	}
	var answers []answer
	if err := json.Unmarshal(text, &answers); err != nil {
		return err
	}
	if number > len(answers) {
		return fmt.Errorf("execution %d has no answer: there are %d", number, len(answers))
	}
	said := answers[number-1]
	if said.Find != "" {
		if said.Stdout, err = find(said, input.Name()); err != nil {
			return err
		}
	}
	if _, err := os.Stdout.Write(said.Stdout); err != nil {
		return err
	}
	if _, err := os.Stderr.Write(said.Stderr); err != nil {
		return err
	}
	windows.ExitProcess(said.Code)
	return nil
}

func find(said answer, input string) ([]byte, error) {
	text, err := os.ReadFile(input)
	if err != nil {
		return nil, err
	}
	pattern, err := regexp.Compile(said.Find)
	if err != nil {
		return nil, err
	}
	found := pattern.FindSubmatch(text)
	if found == nil {
		return nil, fmt.Errorf("%s is not in the input", said.Find)
	}
	return bytes.ReplaceAll(said.Stdout, []byte("FOUND"), found[1]), nil
}

// begin writes down the command line, under the next number.
func begin() (int, error) {
	units := unsafe.Slice(windows.GetCommandLine(), 1<<15)
	var line []byte
	for _, unit := range units {
		if unit == 0 {
			break
		}
		line = binary.LittleEndian.AppendUint16(line, unit)
	}
	for number := 1; ; number++ {
		file, err := os.OpenFile(filepath.Join(recordings, fmt.Sprintf("%d.line", number)), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return 0, err
		}
		defer file.Close()
		_, err = file.Write(line)
		return number, err
	}
}
