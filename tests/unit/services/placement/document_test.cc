#include "services/placement/document.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "services/base/text.h"

namespace switchyard::placement {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

const ExpertGrid kGrid{.moe_layers = {false, true, true, true}, .experts = 8};

constexpr std::string_view kDocument = R"({"epoch": 7, "model_fingerprint": "abc", "workers": [
  {"worker": "10.0.0.1:7000", "node": "a", "zone": "z1", "holds": [
    {"layers": "*", "experts": "5,0-3"}, {"layers": "2", "experts": "7"}]},
  {"worker": "unix:/run/w", "holds": [
    {"layers": "1,3", "experts": "4-7"}, {"layers": "2", "experts": "4-7", "version": 1},
    {"layers": "2", "experts": "4,6"}]}]})";

std::string SaidOf(const absl::Status& status) { return std::string(ToStd(status.message())); }

PlacementIndex IndexOf(std::string_view json, uint32_t version = 0) {
  const auto document = Parse(json);
  EXPECT_TRUE(document.ok()) << document.status();
  auto index = Expand(*document, kGrid, "abc", version);
  EXPECT_TRUE(index.ok()) << index.status();
  return *std::move(index);
}

// One worker with one set.
std::string One(std::string_view layers, std::string_view experts) {
  return fmt::format(
      R"({{"workers": [{{"worker": "w:1", "holds": [{{"layers": "{}", "experts": "{}"}}]}}]}})",
      layers, experts);
}

std::string ParseError(std::string_view json) {
  const auto document = Parse(json);
  EXPECT_EQ(document.status().code(), absl::StatusCode::kInvalidArgument) << json;
  return SaidOf(document.status());
}

std::string ExpandError(std::string_view json) {
  const auto document = Parse(json);
  EXPECT_TRUE(document.ok()) << document.status();
  const auto index = Expand(*document, kGrid, "");
  EXPECT_EQ(index.status().code(), absl::StatusCode::kInvalidArgument) << json;
  return SaidOf(index.status());
}

TEST(PlacementDocument, IsLookedUpByWorkerAndByExpert) {
  const PlacementIndex index = IndexOf(kDocument);
  EXPECT_EQ(index.epoch(), 7u);
  ASSERT_EQ(index.workers().size(), 2u);
  EXPECT_EQ(index.workers()[0].address, "10.0.0.1:7000");
  EXPECT_EQ(index.workers()[0].node, "a");
  EXPECT_EQ(index.workers()[0].zone, "z1");
  EXPECT_EQ(index.workers()[0].replicas, 16);
  EXPECT_EQ(index.workers()[1].replicas, 10);
  EXPECT_THAT(index.replicas(1, 5), ElementsAre(0, 1));
  EXPECT_THAT(index.replicas(2, 5), ElementsAre(0));
  EXPECT_THAT(index.replicas(2, 4), ElementsAre(1));
  EXPECT_THAT(index.replicas(2, 7), ElementsAre(0));
  EXPECT_THAT(index.replicas(0, 0), IsEmpty());
  EXPECT_TRUE(index.workers()[0].held[kGrid.cell(3, 5)]);
  EXPECT_FALSE(index.workers()[0].held[kGrid.cell(3, 4)]);
  EXPECT_TRUE(CheckCovers(index).ok());
}

TEST(PlacementDocument, VersionsAreApart) {
  const PlacementIndex index = IndexOf(kDocument, 1);
  EXPECT_EQ(index.workers()[0].replicas, 0);
  EXPECT_THAT(index.replicas(2, 5), ElementsAre(1));
  EXPECT_THAT(index.replicas(1, 5), IsEmpty());
  EXPECT_THAT(SaidOf(CheckCovers(index)), HasSubstr("of layer 1 experts 0-7 (20 in all layers)"));
}

TEST(PlacementDocument, IsWrittenAsItIsRead) {
  const v1::Placement document = *Parse(kDocument);
  const std::string json = ToJson(document);
  EXPECT_EQ(json, R"({
  "epoch": 7,
  "model_fingerprint": "abc",
  "workers": [
    {"worker": "10.0.0.1:7000", "node": "a", "zone": "z1", "holds": [
      {"layers": "*", "experts": "5,0-3"},
      {"layers": "2", "experts": "7"}]},
    {"worker": "unix:/run/w", "holds": [
      {"layers": "1,3", "experts": "4-7"},
      {"layers": "2", "experts": "4-7", "version": 1},
      {"layers": "2", "experts": "4,6"}]}]
}
)");
  EXPECT_EQ(Parse(json)->SerializeAsString(), document.SerializeAsString());
}

TEST(PlacementDocument, QuotesWhatNeedsIt) {
  v1::Placement document;
  document.set_epoch(~uint64_t{0});
  document.add_workers()->set_worker("unix:/run/\"w\"\n");
  document.mutable_workers(0)->set_node("\\");
  const auto read = Parse(ToJson(document));
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->SerializeAsString(), document.SerializeAsString());
}

TEST(PlacementDocument, HoldsAreWrittenInFewSets) {
  const PlacementIndex index = IndexOf(kDocument);
  v1::WorkerPlacement worker;
  v1::HeldSet* other = worker.add_holds();
  other->set_version(1);
  worker.add_holds()->set_layers("of before");
  SetHolds(index.workers()[0].held, kGrid, 0, &worker);
  ASSERT_EQ(worker.holds_size(), 3);
  EXPECT_EQ(worker.holds(0).version(), 1u);
  EXPECT_EQ(worker.holds(1).layers(), "1,3");
  EXPECT_EQ(worker.holds(1).experts(), "0-3,5");
  EXPECT_EQ(worker.holds(2).layers(), "2");
  EXPECT_EQ(worker.holds(2).experts(), "0-3,5,7");

  std::vector<bool> all(kGrid.cells());
  for (int layer = 1; layer < 4; ++layer) {
    for (int expert = 0; expert < 8; ++expert) all[kGrid.cell(layer, expert)] = true;
  }
  worker.Clear();
  SetHolds(all, kGrid, 2, &worker);
  ASSERT_EQ(worker.holds_size(), 1);
  EXPECT_EQ(worker.holds(0).layers(), "*");
  EXPECT_EQ(worker.holds(0).experts(), "*");
  EXPECT_EQ(worker.holds(0).version(), 2u);
}

TEST(PlacementDocument, ErrorsNameTheirPlace) {
  EXPECT_THAT(ParseError("{\n  \"workers\": ["),
              AllOf(HasSubstr("is no placement: not valid JSON at line 2"), Not(HasSubstr("\n"))));
  EXPECT_THAT(ParseError(R"({"workers": [{"worker": "w:1", "helds": []}]})"), HasSubstr("helds"));
  EXPECT_THAT(ParseError("{}"), HasSubstr("workers: is empty"));
  EXPECT_THAT(ParseError(R"({"workers": [{"worker": "w"}]})"),
              HasSubstr("workers[0] (w): worker: \"w\" is not an address"));
  EXPECT_THAT(ParseError(R"({"workers": [{"worker": "w:1"}, {"worker": "w:1"}]})"),
              HasSubstr("workers[1] (w:1): stands twice"));
  EXPECT_THAT(ParseError(One("1-", "*")), HasSubstr("workers[0] (w:1): holds[0].layers: \"1-\""));
  EXPECT_THAT(ParseError(One("*", "")), HasSubstr("holds[0].experts: \"\" is no list"));
  EXPECT_THAT(ParseError(One("*", "0/2")), HasSubstr("\"0/2\" is no list"));
  EXPECT_THAT(ParseError(One("*", "3,1-4")), HasSubstr("\"3,1-4\" names 3 twice"));
  EXPECT_THAT(ParseError(One("*", "0-99999")), HasSubstr("the last one is 65535"));
  EXPECT_THAT(ParseError(std::string(kDocumentBytesMax + 1, ' ')), HasSubstr("at most"));
}

TEST(PlacementDocument, IsHeldAgainstTheModel) {
  EXPECT_THAT(ExpandError(One("1-4", "*")),
              HasSubstr("workers[0] (w:1): holds[0]: layers: \"1-4\" names 4; the last one is 3"));
  EXPECT_THAT(ExpandError(One("0-3", "*")), HasSubstr("names 0, a layer without experts"));
  EXPECT_THAT(ExpandError(One("*", "8")), HasSubstr("experts: \"8\" names 8; the last one is 7"));
  EXPECT_THAT(ExpandError(R"({"workers": [{"worker": "w:1", "holds": [
                  {"layers": "*", "experts": "0-3"}, {"layers": "2", "experts": "3-4"}]}]})"),
              HasSubstr("holds[1]: holds layer 2 expert 3 a second time"));
  const auto other = Expand(*Parse(kDocument), kGrid, "def");
  EXPECT_EQ(other.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(SaidOf(other.status()), HasSubstr("checkpoint abc, the model is def"));
}

TEST(PlacementDocument, FilesAreNamedInErrors) {
  const std::string path = ::testing::TempDir() + "placement_document_test.json";
  EXPECT_EQ(ReadDocument(path + ".none").status().code(), absl::StatusCode::kNotFound);
  FILE* file = fopen(path.c_str(), "w");
  fputs("{}", file);
  fclose(file);
  EXPECT_THAT(SaidOf(ReadDocument(path).status()), HasSubstr(path + ": workers: is empty"));
  remove(path.c_str());
}

// Without an epoch, or with one that nothing can be above, nobody would heed it.
TEST(PlacementDocument, IsFollowedByAnEpochOnly) {
  v1::Placement document = *Parse(One("*", "*"));
  EXPECT_THAT(SaidOf(CheckEpoch(document)),
              HasSubstr("epoch: is 0; give 1 or more, higher with every change"));
  document.set_epoch(uint64_t{1} << 63);
  EXPECT_EQ(CheckEpoch(document).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(SaidOf(CheckEpoch(document)), HasSubstr("epoch: 9223372036854775808 is above"));
  for (const uint64_t epoch : {uint64_t{1}, kEpochMax}) {
    document.set_epoch(epoch);
    EXPECT_TRUE(CheckEpoch(document).ok());
  }
}

// However many versions or workers a document claims, what it expands to is bounded.
TEST(PlacementDocument, ReplicasAreBounded) {
  ExpertGrid grid{.moe_layers = std::vector<bool>(kLayersMax, true), .experts = 1024};
  v1::Placement document;
  document.add_workers()->set_worker("w:1");
  for (uint32_t version = 0; version < 20; ++version) {
    v1::HeldSet* set = document.mutable_workers(0)->add_holds();
    set->set_layers("*"), set->set_experts("*"), set->set_version(version);
  }
  const auto index = Expand(document, grid, "");
  EXPECT_THAT(SaidOf(index.status()), HasSubstr("holds[16]: more than 67108864"));
}

}  // namespace
}  // namespace switchyard::placement
