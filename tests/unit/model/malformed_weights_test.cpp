// SPDX-License-Identifier: Apache-2.0
// Every way we know to break a model folder, one line each: refused as the user's input, with the file and the tensor
// named, and without allocating more than the file is worth.
#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <ostream>

#include "common/error.h"
#include "model/weights.h"
#include "tests/support/temporary_folder.h"
#include "tests/unit/model/counted_heap.h"
#include "tests/unit/model/weight_files.h"

namespace espalier::model {
namespace {

using test::entry;
using test::length_bytes;
using test::safetensors_bytes;

// An exception, its text and one parser cost a few KiB; an entry takes up to three times the bytes of its text. Nothing
// may follow a number that stands in the file.
constexpr std::int64_t kFixedBytes = 16 << 10;
constexpr std::int64_t kBytesPerByte = 3;

void expect_refusal(const std::function<void()>& open, std::int64_t input_bytes,
                    const std::vector<std::string>& texts) {
  const test::HeapPeak peak;
  try {
    open();
    FAIL() << "was accepted";
  } catch (const ConfigError& error) {
    EXPECT_LE(peak.bytes(), kFixedBytes + kBytesPerByte * input_bytes);
    const std::string message = error.what();
    EXPECT_LE(message.size(), 1200U);
    for (const std::string& text : texts) {
      EXPECT_NE(message.find(text), std::string::npos) << "expected \"" << text << "\" in: " << message;
    }
  }
}

struct BrokenFile {
  std::string name;  ///< letters and digits only
  std::string bytes;
  std::vector<std::string> texts;  ///< besides the name of the file
};
void PrintTo(const BrokenFile& file, std::ostream* stream) {
  *stream << file.name;
}

/// A file whose header is `{` + entries + `}`.
BrokenFile with_entries(std::string name, const std::string& entries, std::size_t data_bytes,
                        std::vector<std::string> texts) {
  return {std::move(name), safetensors_bytes("{" + entries + "}", std::string(data_bytes, 'x')), std::move(texts)};
}

std::string repeated(std::string_view text, int times) {
  std::string result;
  for (int i = 0; i < times; ++i) {
    result += text;
  }
  return result;
}

std::vector<BrokenFile> broken_files() {
  const std::string good = entry("a", "F32", "[2]", "[0,8]");
  const std::string metadata = R"("__metadata__":)";
  std::vector<BrokenFile> files{
      {"Empty", "", {"file of 0 bytes"}},
      {"SevenBytes", std::string(7, '\0'), {"file of 7 bytes"}},
      {"HeaderLengthZero", length_bytes(0), {"header", "nothing"}},
      {"HeaderLengthTwoToThe63", length_bytes(1ULL << 63) + "{}", {"9223372036854775808", "at most 2"}},
      {"HeaderLengthAllOnes", length_bytes(~0ULL) + "{}", {"18446744073709551615"}},
      {"HeaderLengthOneBeyondTheFile", length_bytes(3) + "{}", {"at most 2", "found 3"}},
      {"HeaderStartsWithASpace", safetensors_bytes(" {}", ""), {"'{'"}},
      {"HeaderStartsWithAByteOrderMark", safetensors_bytes("\xEF\xBB\xBF{}", ""), {"'{'", "\\xef"}},
      {"HeaderIsAList", safetensors_bytes("[]", ""), {"'{'"}},
      {"HeaderIsCutShort", safetensors_bytes("{" + good, std::string(8, 'x')), {"broken JSON at byte"}},
      {"HeaderIsOpenOnly", safetensors_bytes("{", ""), {"broken JSON"}},
      {"HeaderFollowedByText", safetensors_bytes("{}x", ""), {"broken JSON"}},
      {"HeaderFollowedByAZeroByte", safetensors_bytes(std::string_view("{}\0{", 4), ""), {"zero byte"}},
      {"HeaderWithAComment", safetensors_bytes("{/**/}", ""), {"broken JSON"}},
      {"TrailingComma", safetensors_bytes("{" + good + ",}", std::string(8, 'x')), {"broken JSON"}},
      {"NameIsNotUtf8",
       safetensors_bytes("{" + entry("\xC3(", "F32", "[2]", "[0,8]") + "}", std::string(8, 'x')),
       {"\\xc3"}},
      {"NameIsHalfASurrogatePair",
       safetensors_bytes("{" + entry("\\ud800", "U8", "[0]", "[0,0]") + "}", ""),
       {"broken JSON"}},
      {"NameHasALineBreak", safetensors_bytes("{" + entry("a\nb", "U8", "[0]", "[0,0]") + "}", ""), {"broken JSON"}},
      with_entries("TensorTwice", good + "," + entry("a", "F32", "[2]", "[8,16]"), 16, {"tensor \"a\"", "twice"}),
      with_entries("TensorTwiceSpeltDifferently", good + "," + entry("\\u0061", "F32", "[2]", "[8,16]"), 16,
                   {"\"a\"", "twice"}),
      with_entries("TensorTwiceAndEmpty", entry("a", "U8", "[0]", "[0,0]") + "," + entry("a", "U8", "[0]", "[0,0]"), 0,
                   {"tensor \"a\"", "twice"}),
      with_entries("FieldTwice", R"("a":{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]})", 0,
                   {"tensor \"a\"", "second key \"dtype\""}),
      with_entries("FieldUnknown", R"("a":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"stride":[1]})", 0,
                   {"tensor \"a\"", "unknown key \"stride\""}),
      with_entries("TypeMissing", R"("a":{"shape":[0],"data_offsets":[0,0]})", 0, {"tensor \"a\"", "dtype"}),
      with_entries("ShapeMissing", R"("a":{"dtype":"U8","data_offsets":[0,0]})", 0, {"tensor \"a\"", "shape"}),
      with_entries("OffsetsMissing", R"("a":{"dtype":"U8","shape":[0]})", 0, {"tensor \"a\"", "data_offsets"}),
      with_entries("EntryIsEmpty", R"("a":{})", 0, {"tensor \"a\""}),
      with_entries("EntryIsNull", R"("a":null)", 0, {"tensor \"a\"", "null"}),
      with_entries("EntryIsABoolean", R"("a":true)", 0, {"tensor \"a\"", "boolean"}),
      with_entries("EntryIsAList", R"("a":[])", 0, {"tensor \"a\"", "a list"}),
      with_entries("EntryIsText", R"("a":"F32")", 0, {"tensor \"a\"", "the text \"F32\""}),
      with_entries("TypeUnknown", entry("a", "F8_E4M3", "[2]", "[0,2]"), 2, {"tensor \"a\"", "F8_E4M3", "BF16"}),
      with_entries("TypeInSmallLetters", entry("a", "f32", "[2]", "[0,8]"), 8, {"tensor \"a\"", "\"f32\""}),
      with_entries("TypeIsANumber", R"("a":{"dtype":32,"shape":[2],"data_offsets":[0,8]})", 8,
                   {"tensor \"a\"", "found 32"}),
      with_entries("ShapeIsText", entry("a", "F32", "\"2\"", "[0,8]"), 8, {"tensor \"a\"", "the text \"2\""}),
      with_entries("ShapeIsANumber", entry("a", "F32", "2", "[0,8]"), 8, {"tensor \"a\"", "found 2"}),
      with_entries("ShapeIsNegative", entry("a", "F32", "[-2]", "[0,8]"), 8, {"tensor \"a\"", "found -2"}),
      with_entries("ShapeTwiceNegative", entry("a", "F32", "[-2,-1]", "[0,8]"), 8, {"tensor \"a\"", "found -2"}),
      with_entries("ShapeIsAFraction", entry("a", "F32", "[2.0]", "[0,8]"), 8, {"tensor \"a\"", "2.0"}),
      with_entries("ShapeIsTwoToThe63", entry("a", "U8", "[9223372036854775808]", "[0,8]"), 8,
                   {"tensor \"a\"", "9223372036854775808"}),
      with_entries("ShapeIsTwoToThe64", entry("a", "U8", "[18446744073709551616]", "[0,8]"), 8,
                   {"tensor \"a\"", "18446744073709551616"}),
      with_entries("ShapeIsBeyondAllNumbers", entry("a", "U8", "[1e999]", "[0,8]"), 8, {"tensor \"a\"", "1e999"}),
      with_entries("ShapeHasAThousandDigits", entry("a", "U8", "[" + std::string(1000, '9') + "]", "[0,8]"), 8,
                   {"tensor \"a\"", "9999\""}),
      with_entries("ShapeTimesShapeOverflows", entry("a", "U8", "[4294967296,4294967296]", "[0,0]"), 0,
                   {"tensor \"a\"", "more than 2^63"}),
      with_entries("ShapeTimesTypeOverflows", entry("a", "F64", "[2305843009213693952]", "[0,0]"), 0,
                   {"tensor \"a\"", "more than 2^63"}),
      with_entries("EmptyShapeWhoseStridesOverflow", entry("a", "U8", "[0,4294967296,4294967296]", "[0,0]"), 0,
                   {"tensor \"a\"", "more than 2^63"}),
      with_entries("ShapeOf65Dimensions", entry("a", "U8", "[1" + repeated(",1", 64) + "]", "[0,1]"), 1,
                   {"tensor \"a\"", "element 65"}),
      with_entries("ShapeIsNested", entry("a", "F32", "[[2]]", "[0,8]"), 8, {"tensor \"a\"", "a list"}),
      with_entries("OffsetIsNegative", entry("a", "F32", "[2]", "[-8,0]"), 8, {"tensor \"a\"", "-8"}),
      with_entries("OffsetIsAFraction", entry("a", "F32", "[2]", "[0,8.5]"), 8, {"tensor \"a\"", "8.5"}),
      with_entries("OneOffset", entry("a", "F32", "[2]", "[8]"), 8, {"tensor \"a\"", "data_offsets"}),
      with_entries("NoOffset", entry("a", "F32", "[2]", "[]"), 8, {"tensor \"a\"", "data_offsets"}),
      with_entries("ThreeOffsets", entry("a", "F32", "[2]", "[0,8,8]"), 8, {"tensor \"a\"", "8 as element 3"}),
      with_entries("OffsetsReversed", entry("a", "F32", "[2]", "[8,0]"), 8, {"tensor \"a\"", "[8, 0]"}),
      with_entries("OffsetsBeyondTheFile", entry("a", "F32", "[2]", "[8,16]"), 8,
                   {"tensor \"a\"", "[8, 16]", "8 bytes of data"}),
      with_entries("OffsetsThatWrapAround", entry("a", "F32", "[2]", "[18446744073709551608,0]"), 8,
                   {"tensor \"a\"", "18446744073709551608"}),
      with_entries("OffsetsOfATerabyte", entry("a", "U8", "[1099511627776]", "[0,1099511627776]"), 8,
                   {"tensor \"a\"", "1099511627776"}),
      with_entries("RangeSmallerThanTheShape", entry("a", "F32", "[1000]", "[0,8]"), 8,
                   {"tensor \"a\"", "4000 bytes for F32 [1000]"}),
      with_entries("RangeLargerThanTheShape", entry("a", "F32", "[1]", "[0,8]"), 8,
                   {"tensor \"a\"", "4 bytes for F32 [1]"}),
      with_entries("RangeOfAnotherType", entry("a", "F16", "[2]", "[0,8]"), 8, {"tensor \"a\"", "4 bytes for F16 [2]"}),
      with_entries("SameRangeTwice", good + "," + entry("b", "F32", "[2]", "[0,8]"), 8, {"tensor \"b\"", "an overlap"}),
      with_entries("RangesOverlap", good + "," + entry("b", "F32", "[2]", "[4,12]"), 12,
                   {"tensor \"b\"", "begin at 8", "an overlap"}),
      with_entries("HoleInFront", entry("a", "F32", "[2]", "[8,16]"), 16, {"tensor \"a\"", "a hole"}),
      with_entries("HoleBetween", good + "," + entry("b", "F32", "[1]", "[12,16]"), 16,
                   {"tensor \"b\"", "begin at 8", "a hole"}),
      with_entries("TrailingBytes", good, 9, {"expected 8 bytes", "found 9 bytes"}),
      with_entries("TruncatedData", good, 7, {"tensor \"a\"", "7 bytes of data"}),
      with_entries("DataWithoutTensors", "", 4, {"expected 0 bytes", "found 4 bytes"}),
      with_entries("MetadataTwice", metadata + "{}," + metadata + "{}", 0, {"__metadata__", "twice"}),
      with_entries("MetadataKeyTwice", metadata + R"({"format":"pt","format":"tf"})", 0,
                   {"__metadata__", "\"format\" twice"}),
      with_entries("MetadataOfANumber", metadata + R"({"step":1})", 0, {"__metadata__", "found 1"}),
      with_entries("MetadataOfAnObject", metadata + R"({"step":{}})", 0, {"__metadata__", "an object"}),
      with_entries("MetadataIsText", metadata + R"("pt")", 0, {"the text \"pt\""}),
      with_entries("MetadataIsNull", metadata + "null", 0, {"null"}),
      with_entries("DeepLists", "\"a\":" + std::string(1 << 20, '['), 0, {"tensor \"a\"", "a list"}),
      with_entries("DeepObjects", repeated("\"a\":{", 100'000), 0, {"tensor \"a\"", "unknown key \"a\""}),
      with_entries("DeepMetadata", metadata + repeated("{\"a\":", 100'000), 0, {"__metadata__", "an object"}),
      with_entries("UnendingName", "\"" + std::string(2 << 20, 'n'), 0, {"more than 1048576 bytes"}),
      with_entries("LongName", entry(std::string(2 << 20, 'n'), "U8", "[0]", "[0,0]"), 0, {"more than 1048576 bytes"}),
      with_entries("LongMetadata", metadata + "{\"x\":\"" + std::string(2 << 20, 'n') + "\"}", 0,
                   {"more than 1048576 bytes"}),
      with_entries("LongNumber", entry("a", "U8", "[" + std::string(2 << 20, '0') + "]", "[0,0]"), 0,
                   {"more than 1048576 bytes"}),
      with_entries("LongWrongName", "\"" + std::string(1000, 'n') + "\":1", 0, {"nnn...\"", "found 1"}),
      with_entries("LongWrongType", entry("a", std::string(1000, 'F'), "[2]", "[0,8]"), 8,
                   {"tensor \"a\"", "FFF...\""}),
      with_entries("ManyShapes", entry("a", "U8", "[0" + repeated(",0", 1 << 19) + "]", "[0,0]"), 0,
                   {"tensor \"a\"", "element 65"}),
  };
  // A small file that asks for much memory: every entry claims the same megabyte.
  std::string claims;
  for (int i = 0; i < 1000; ++i) {
    claims += i == 0 ? "" : ",";
    claims += entry(std::to_string(i), "U8", "[1048576]", "[0,1048576]");
  }
  files.push_back(with_entries("ThousandClaimsToOneMegabyte", claims, 1 << 20, {"an overlap"}));
  return files;
}

class BrokenSafetensors : public testing::TestWithParam<BrokenFile> {};

TEST_P(BrokenSafetensors, IsRefusedByNameWithoutAllocatingForItsClaims) {
  const TemporaryFolder folder;
  const auto file = folder.path() / "model.safetensors";
  test::write_bytes(file, GetParam().bytes);
  auto texts = GetParam().texts;
  texts.push_back(file.string());
  expect_refusal([&] { (void)open_safetensors(file); }, static_cast<std::int64_t>(GetParam().bytes.size()), texts);
}

INSTANTIATE_TEST_SUITE_P(Table, BrokenSafetensors, testing::ValuesIn(broken_files()),
                         [](const auto& each) { return each.param.name; });

TEST(BrokenSafetensorsFile, IsRefusedWhenItsHeaderIsOverTheLimitOfTheFormatThoughTheFileIsLarger) {
  const TemporaryFolder folder;
  const auto file = folder.path() / "model.safetensors";
  test::write_bytes(file, length_bytes(100'000'001) + "{}");
  std::filesystem::resize_file(file, 200'000'000);  // sparse
  expect_refusal([&] { (void)open_safetensors(file); }, 0, {file.string(), "at most 100000000", "found 100000001"});
}

TEST(BrokenSafetensorsFile, CostsAFewMegabytesWithTheLongestTextThatIsRead) {
  const TemporaryFolder folder;
  const auto file = folder.path() / "model.safetensors";
  const std::string longest(1 << 20, 'n');
  test::write_bytes(file, safetensors_bytes("{\"__metadata__\":{\"x\":\"" + longest + "\"}}", ""));
  EXPECT_NO_THROW((void)open_safetensors(file));
  // Broken where it hurts most: the parser words its error around the whole text.
  test::write_bytes(file, safetensors_bytes("{\"" + longest, ""));
  expect_refusal([&] { (void)open_safetensors(file); }, 4 << 20, {file.string(), "broken JSON"});
}

TEST(BrokenSafetensorsFile, IsRefusedWhenItIsMissingOrNoRegularFile) {
  const TemporaryFolder folder;
  expect_refusal([&] { (void)open_safetensors(folder.path() / "absent"); }, 0, {"absent", "No such file"});
  expect_refusal([&] { (void)open_safetensors(folder.path()); }, 0, {folder.path().string(), "regular file"});
  // A pipe without a writer would be waited for.
  const auto pipe = folder.path() / "pipe";
  ASSERT_EQ(std::system(("mkfifo " + pipe.string()).c_str()), 0);
  expect_refusal([&] { (void)open_safetensors(pipe); }, 0, {pipe.string(), "regular file"});
}

TEST(BrokenSafetensorsFile, IsRefusedAtTheTensorWhoseBooleansAreNeitherTrueNorFalse) {
  const TemporaryFolder folder;
  const auto file = folder.path() / "model.safetensors";
  test::write_bytes(file,
                    safetensors_bytes("{" + entry("flags", "BOOL", "[3]", "[0,3]") + "}", std::string("\0\1\2", 3)));
  const auto source = open_safetensors(file);
  expect_refusal([&] { (void)source->get("flags"); }, 0, {file.string(), "tensor \"flags\"", "2 as its element 2"});
}

struct BrokenFolder {
  std::string name;
  std::map<std::string, std::string> files;
  std::vector<std::string> texts;  ///< besides the name of the folder
};
void PrintTo(const BrokenFolder& folder, std::ostream* stream) {
  *stream << folder.name;
}

/// The index over two good shards: one.safetensors with tensor "a" and two.safetensors with "b".
BrokenFolder with_index(std::string name, std::string index, std::vector<std::string> texts) {
  texts.emplace_back("model.safetensors.index.json");
  return {std::move(name),
          {{"model.safetensors.index.json", std::move(index)},
           {"one.safetensors", safetensors_bytes("{" + entry("a", "U8", "[2]", "[0,2]") + "}", "xy")},
           {"two.safetensors", safetensors_bytes("{" + entry("b", "U8", "[2]", "[0,2]") + "}", "xy")}},
          std::move(texts)};
}

BrokenFolder with_map(std::string name, const std::string& map, std::vector<std::string> texts) {
  return with_index(std::move(name), R"({"metadata":{"total_size":4},"weight_map":{)" + map + "}}", std::move(texts));
}

std::vector<BrokenFolder> broken_folders() {
  const std::string good = R"("a":"one.safetensors","b":"two.safetensors")";
  std::vector<BrokenFolder> folders{
      {"Empty", {}, {"model.safetensors", "found neither"}},
      {"PickleOnly", {{"pytorch_model.bin", "x"}}, {"pytorch_model.bin", "save_file"}},
      {"BrokenSingleFile", {{"model.safetensors", "x"}}, {"model.safetensors: header length"}},
      with_index("IndexIsEmpty", "", {"found nothing"}),
      with_index("IndexIsNoJson", "weight_map: a", {"'{'"}),
      with_index("IndexIsAList", "[]", {"'{'"}),
      with_index("IndexIsCutShort", R"({"weight_map":{"a":"one.safe)", {"broken JSON"}),
      with_index("IndexIsNotUtf8", "{\"weight_map\":{\"\xFF\":\"one.safetensors\"}}", {"\\xff"}),
      with_index("IndexHasAZeroByte", std::string("{}\0{}", 5), {"zero byte"}),
      with_index("IndexWithoutMap", R"({"metadata":{}})", {"\"weight_map\"", "found none"}),
      with_index("MapIsNull", R"({"weight_map":null})", {"weight_map", "null"}),
      with_index("MapIsAList", R"({"weight_map":["one.safetensors"]})", {"weight_map", "a list"}),
      with_index("MapIsText", R"({"weight_map":"one.safetensors"})", {"weight_map", "the text"}),
      with_index("MapTwice", R"({"weight_map":{)" + good + R"(},"weight_map":{)" + good + "}}",
                 {"weight_map", "twice"}),
      with_index("DeepMetadata", R"({"metadata":)" + std::string(1 << 20, '['), {"deeper than"}),
      with_map("ShardIsANumber", R"("a":1)", {"\"a\"", "found 1"}),
      with_map("ShardIsAnObject", R"("a":{"b":"one.safetensors"})", {"\"a\"", "an object"}),
      with_map("TensorTwice", good + R"(,"a":"one.safetensors")", {"\"a\"", "twice"}),
      with_map("ShardMissing", good + R"(,"c":"three.safetensors")",
               {"tensor \"c\"", "three.safetensors", "no such file"}),
      with_map("ShardOutside", good + R"(,"c":"../one.safetensors")", {"tensor \"c\"", "\"../one.safetensors\""}),
      with_map("ShardOutsideByDetour", good + R"(,"c":"sub/../../one.safetensors")", {"tensor \"c\"", "\"sub/../../"}),
      with_map("ShardAbsolute", good + R"(,"c":"/etc/passwd")", {"tensor \"c\"", "\"/etc/passwd\""}),
      with_map("ShardIsTheFolderAbove", good + R"(,"c":"..")", {"tensor \"c\"", "\"..\""}),
      with_map("ShardIsTheFolder", good + R"(,"c":".")", {"tensor \"c\"", "\".\""}),
      with_map("ShardIsASubfolder", good + R"(,"c":"sub/")", {"tensor \"c\"", "\"sub/\""}),
      with_map("ShardWithoutName", good + R"(,"c":"")", {"tensor \"c\"", "\"\""}),
      with_map("ShardWithAZeroByte", good + R"(,"c":"one.safetensors\u0000.txt")", {"tensor \"c\"", "\\x00"}),
      with_map("ShardSpeltTwoWays", R"("a":"./one.safetensors","b":"two.safetensors")", {"tensor \"a\"", "\"./one"}),
      with_map("TensorNotInItsShard", good + R"(,"c":"one.safetensors")", {"tensor \"c\"", "missing there"}),
      with_map("TensorInAnotherShard", R"("a":"two.safetensors","b":"two.safetensors")",
               {"tensor \"a\"", "missing there"}),
      with_map("TensorNotInTheMap", R"("a":"one.safetensors","b":"two.safetensors","c":"three.safetensors")",
               {"tensor \"d\"", "no such tensor", "three.safetensors"}),
      with_map("TensorInTwoShards", R"("a":"one.safetensors","b":"two.safetensors","c":"three.safetensors")",
               {"tensor \"a\"", "only in \"one.safetensors\"", "three.safetensors"}),
      with_map("ShardBroken", good + R"(,"c":"three.safetensors")", {"three.safetensors: header length"}),
  };
  const auto third_shard = [&](const char* name, std::string bytes) {
    const auto folder =
        std::find_if(folders.begin(), folders.end(), [&](const BrokenFolder& each) { return each.name == name; });
    folder->files["three.safetensors"] = std::move(bytes);
    return folder;
  };
  const std::string c = entry("c", "U8", "[0]", "[0,0]");
  third_shard("TensorNotInTheMap", safetensors_bytes("{" + c + "," + entry("d", "U8", "[0]", "[0,0]") + "}", ""));
  third_shard("TensorInTwoShards", safetensors_bytes("{" + c + "," + entry("a", "U8", "[0]", "[0,0]") + "}", ""));
  third_shard("ShardBroken", "x")->texts.pop_back();  // the shard is named instead of the index
  return folders;
}

class BrokenModelFolder : public testing::TestWithParam<BrokenFolder> {};

TEST_P(BrokenModelFolder, IsRefusedByNameWithoutAllocatingForItsClaims) {
  const TemporaryFolder folder;
  std::int64_t bytes = 0;
  for (const auto& [name, contents] : GetParam().files) {
    test::write_bytes(folder.path() / name, contents);
    bytes += static_cast<std::int64_t>(contents.size());
  }
  auto texts = GetParam().texts;
  texts.push_back(folder.path().string());
  expect_refusal([&] { (void)open_model_folder(folder.path()); }, bytes, texts);
}

INSTANTIATE_TEST_SUITE_P(Table, BrokenModelFolder, testing::ValuesIn(broken_folders()),
                         [](const auto& each) { return each.param.name; });

TEST(BrokenModelFolderPath, IsRefusedWhenItIsAbsentOrAFile) {
  const TemporaryFolder folder;
  test::write_bytes(folder.path() / "file", "x");
  expect_refusal([&] { (void)open_model_folder(folder.path() / "absent"); }, 0, {"absent", "found nothing"});
  expect_refusal([&] { (void)open_model_folder(folder.path() / "file"); }, 0, {"file", "found a file"});
}

TEST(BrokenModelFolderPath, IsRefusedWhenAShardIsALinkToNothing) {
  const TemporaryFolder folder;
  test::write_bytes(folder.path() / "model.safetensors.index.json", R"({"weight_map":{"a":"one.safetensors"}})");
  std::filesystem::create_symlink(folder.path() / "gone", folder.path() / "one.safetensors");
  expect_refusal([&] { (void)open_model_folder(folder.path()); }, 0,
                 {"tensor \"a\"", "one.safetensors", "no such file"});
}

}  // namespace
}  // namespace espalier::model
