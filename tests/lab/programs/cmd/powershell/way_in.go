//go:build windows

package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"

	"golang.org/x/sys/windows"
)

// The two scripts of the way in by WinRM (plugin_utils/winrm_scripts.py), word for word but for what stands between at signs.
const (
	placeScript = `$ErrorActionPreference='Stop'
$ProgressPreference='SilentlyContinue'
$packed=New-Object IO.MemoryStream
foreach($line in $input){$part=[Convert]::FromBase64String($line);$packed.Write($part,0,$part.Length)}
$packed.Position=0
$unpacked=New-Object IO.MemoryStream
try{(New-Object IO.Compression.GZipStream($packed,[IO.Compression.CompressionMode]::Decompress)).CopyTo($unpacked)}catch{}
$file=$unpacked.ToArray()
$sum=[BitConverter]::ToString((New-Object Security.Cryptography.SHA256CryptoServiceProvider).ComputeHash($file)).Replace('-','').ToLowerInvariant()
if($sum -ne '@sum@'){[Console]::WriteLine("damaged $sum");exit 0}
$folder="$env:SystemRoot\@name@"
$mine=$false
try{
New-Item -ItemType Directory -Path $folder|Out-Null
$mine=$true
[IO.File]::WriteAllText("$folder\session",'@session@')
[IO.File]::WriteAllBytes("$folder\agent.exe",$file)
[Console]::WriteLine('placed')
}catch{
$fault=$_.Exception.GetBaseException()
if($mine){Remove-Item -LiteralPath $folder -Recurse -Force -ErrorAction SilentlyContinue}
if(!$mine -and (Test-Path -LiteralPath $folder)){[Console]::WriteLine('there')}
else{[Console]::WriteLine(('refused {0:x8} {1}' -f $fault.HResult,$fault.Message))}
}
exit 0
`

	startScript = `$ErrorActionPreference='Stop'
$ProgressPreference='SilentlyContinue'
$folder="$env:SystemRoot\@name@"
try{
[IO.File]::WriteAllBytes("$folder\config.json",[Convert]::FromBase64String('@config@'))
$held=[IO.File]::Open("$folder\agent.exe",'Open','Read','Read')
}catch{
$fault=$_.Exception.GetBaseException()
[Console]::WriteLine(('refused {0:x8} {1}' -f $fault.HResult,$fault.Message))
exit 0
}
$sum=[BitConverter]::ToString((New-Object Security.Cryptography.SHA256CryptoServiceProvider).ComputeHash($held)).Replace('-','').ToLowerInvariant()
[Console]::WriteLine("sum $sum")
if($sum -eq '@sum@'){
foreach($words in @calls@){
$order=New-Object Diagnostics.ProcessStartInfo("$env:SystemRoot\System32\sc.exe",$words)
$order.UseShellExecute=$false
$process=[Diagnostics.Process]::Start($order)
$process.WaitForExit()
[Console]::WriteLine("exit $($process.ExitCode)")
if($process.ExitCode -ne 0){break}
}
}
$held.Close()
exit 0
`
)

var (
	place  = pattern(placeScript)
	start  = pattern(startScript)
	quoted = regexp.MustCompile(`'((?:[^']|'')*)'`)
)

// pattern finds a script by its words: what is filled in is a group.
func pattern(script string) *regexp.Regexp {
	text := regexp.QuoteMeta(script)
	text = regexp.MustCompile(`@calls@`).ReplaceAllLiteralString(text, `((?:'(?:[^']|'')*',?)+)`)
	return regexp.MustCompile(`^` + regexp.MustCompile(`@[a-z]+@`).ReplaceAllLiteralString(text, `([^'\r\n]*)`) + `$`)
}

// hresults are what .NET makes of these errors.
var hresults = []struct {
	code   syscall.Errno
	result string
}{
	{windows.ERROR_FILE_NOT_FOUND, "80070002"}, {windows.ERROR_PATH_NOT_FOUND, "80070003"}, {windows.ERROR_ACCESS_DENIED, "80070005"},
	{windows.ERROR_SHARING_VIOLATION, "80070020"}, {windows.ERROR_DISK_FULL, "80070070"},
}

func refused(err error) {
	result := "80131620"
	for _, known := range hresults {
		if errors.Is(err, known.code) {
			result = known.result
		}
	}
	fmt.Printf("refused %s %v\r\n", result, err)
}

// placeAgent does what PLACE does.
func placeAgent(sum, name, session string) (int, error) {
	var packed []byte
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<26)
	for lines.Scan() {
		part, err := base64.StdEncoding.DecodeString(lines.Text())
		if err != nil {
			return 1, err // FromBase64String's exception ends the script
		}
		packed = append(packed, part...)
	}
	var file []byte
	if unpacking, err := gzip.NewReader(bytes.NewReader(packed)); err == nil {
		file, _ = io.ReadAll(unpacking)
	}
	if found := sha256.Sum256(file); hex.EncodeToString(found[:]) != sum {
		fmt.Printf("damaged %x\r\n", found)
		return 0, nil
	}
	folder := filepath.Join(os.Getenv("SystemRoot"), name)
	if err := os.Mkdir(folder, 0o777); errors.Is(err, fs.ErrExist) {
		fmt.Print("there\r\n")
		return 0, nil
	} else if err != nil {
		refused(err)
		return 0, nil
	}
	err := os.WriteFile(filepath.Join(folder, "session"), []byte(session), 0o666)
	if err == nil {
		err = os.WriteFile(filepath.Join(folder, "agent.exe"), file, 0o666)
	}
	if err != nil {
		os.RemoveAll(folder)
		refused(err)
		return 0, nil
	}
	fmt.Print("placed\r\n")
	return 0, nil
}

// startAgent does what START does.
func startAgent(name, config, sum, calls string) (int, error) {
	folder := filepath.Join(os.Getenv("SystemRoot"), name)
	content, err := base64.StdEncoding.DecodeString(config)
	if err == nil {
		err = os.WriteFile(filepath.Join(folder, "config.json"), content, 0o666)
	}
	var held *os.File
	if err == nil {
		held, err = openForReaders(filepath.Join(folder, "agent.exe"))
	}
	if err != nil {
		refused(err)
		return 0, nil
	}
	defer held.Close()
	digest := sha256.New()
	if _, err := io.Copy(digest, held); err != nil {
		return 1, err
	}
	found := hex.EncodeToString(digest.Sum(nil))
	fmt.Printf("sum %s\r\n", found)
	if found != sum {
		return 0, nil
	}
	for _, call := range quoted.FindAllStringSubmatch(calls, -1) {
		program := filepath.Join(os.Getenv("SystemRoot"), `System32\sc.exe`)
		line := fmt.Sprintf(`"%s" %s`, program, strings.ReplaceAll(call[1], "''", "'"))
		command := &exec.Cmd{Path: program, SysProcAttr: &syscall.SysProcAttr{CmdLine: line}, Stdout: os.Stdout, Stderr: os.Stderr}
		if err := command.Run(); err != nil && command.ProcessState == nil {
			return 1, err
		}
		fmt.Printf("exit %d\r\n", command.ProcessState.ExitCode())
		if command.ProcessState.ExitCode() != 0 {
			break
		}
	}
	return 0, nil
}

// openForReaders opens a file which nobody can write to meanwhile: FileShare.Read.
func openForReaders(path string) (*os.File, error) {
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return nil, err
	}
	handle, err := windows.CreateFile(name, windows.GENERIC_READ, windows.FILE_SHARE_READ, nil, windows.OPEN_EXISTING, 0, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(handle), path), nil
}
